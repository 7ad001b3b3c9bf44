#include "plan.h"

#include <stdbool.h>
#include <string.h>

/* How many deadlines are tried as the first batch's limit. */
#define LIMITS 8

struct question {
    const struct paml_plan_item *items;
    uint32_t n;
    struct paml_line line;
    int64_t now_ns, max_rows;
};

/* A plan in the making: what still waits, as a list in order, and since when. */
struct course {
    int64_t now_ns;
    uint16_t next[PAML_PLAN_MOST + 1]; /* by item + 1; [0]: the first. 0: the end */
    bool met[PAML_PLAN_MOST];
};

struct batch {
    uint32_t count;
    int64_t rows, in_time, ends_ns; /* in_time: of the rows */
    uint16_t items[PAML_PLAN_MOST];
};

/* How batches are chosen. A limit is the moment by which the batch must have ended; it
   passes over those that would be late at the limit, and then has as many rows as the
   limit allows. */
enum policy {
    IN_ORDER, /* no limit: up to max_rows, come what may */
    FULL,     /* the end of a batch of all that waits, or of max_rows */
    URGENT,   /* the deadline of the most urgent that has one */
    POLICIES,
};

int64_t
paml_plan_cost(const struct paml_line *line, int64_t rows, int64_t max_rows)
{
    int64_t runs = rows > max_rows ? (rows - 1) / max_rows + 1 : 1;

    return (int64_t)(line->a * (double)rows + line->b * (double)runs);
}

static int64_t
cost_of(const struct question *question, int64_t rows)
{
    return paml_plan_cost(&question->line, rows, question->max_rows);
}

static bool
is_late(const struct paml_plan_item *item, int64_t moment_ns)
{
    return item->deadline_ns != 0 && item->deadline_ns < moment_ns;
}

/* Late even if run alone at once. Time only goes on: it stays so. */
static bool
is_hopeless(const struct question *question, const struct course *course,
            const struct paml_plan_item *item)
{
    return item->deadline_ns != 0 &&
           is_late(item, course->now_ns + cost_of(question, item->rows));
}

/* How many rows a batch may have that ends by the limit. */
static int64_t
room(const struct question *question, const struct course *course, int64_t limit_ns)
{
    double spare = (double)(limit_ns - course->now_ns) - question->line.b;

    if (spare < 0) {
        return 0;
    }
    return spare < question->line.a * (double)question->max_rows
               ? (int64_t)(spare / question->line.a)
               : question->max_rows;
}

/* The batch up to a limit, 0: none. It ends where one that may not be passed doesn't
   fit. May be empty. */
static void
choose(const struct question *question, const struct course *course, int64_t limit_ns,
       struct batch *batch)
{
    int64_t most = question->max_rows;

    if (limit_ns != 0) {
        most = room(question, course, limit_ns);
    }
    batch->count = 0;
    batch->rows = batch->in_time = 0;
    for (uint16_t i = course->next[0]; i != 0 && batch->rows < most;
         i = course->next[i]) {
        const struct paml_plan_item *item = &question->items[i - 1];
        bool alone = batch->count == 0 && item->rows > question->max_rows;

        if (is_hopeless(question, course, item) ||
            (limit_ns != 0 && is_late(item, limit_ns))) {
            continue;
        }
        if (alone && limit_ns != 0) {
            alone = course->now_ns + cost_of(question, item->rows) <= limit_ns;
        }
        if (alone || batch->rows + item->rows <= most) {
            batch->items[batch->count++] = (uint16_t)(i - 1);
            batch->rows += item->rows;
        } else if (limit_ns == 0 || item->deadline_ns == 0) {
            break;
        }
    }
    batch->ends_ns = course->now_ns + cost_of(question, batch->rows);
    for (uint32_t i = 0; i < batch->count; i++) {
        const struct paml_plan_item *item = &question->items[batch->items[i]];

        batch->in_time += is_late(item, batch->ends_ns) ? 0 : item->rows;
    }
}

/* Runs a batch: takes it from what waits, with the hopeless on the way, and time goes
   on. */
static void
course_run(const struct question *question, struct course *course,
           const struct batch *batch)
{
    uint16_t *link = &course->next[0];

    course->now_ns = batch->ends_ns;
    for (uint32_t i = 0; i < batch->count;) {
        uint16_t index = (uint16_t)(*link - 1);
        const struct paml_plan_item *item = &question->items[index];

        if (index == batch->items[i]) {
            course->met[index] = !is_late(item, batch->ends_ns);
            *link = course->next[*link];
            i++;
        } else if (is_hopeless(question, course, item)) {
            *link = course->next[*link];
        } else {
            link = &course->next[*link];
        }
    }
}

/* The limit that a policy sets, 0: none. */
static int64_t
limit_of(const struct question *question, const struct course *course,
         enum policy policy)
{
    int64_t rows = 0;

    if (policy == IN_ORDER) {
        return 0;
    }
    for (uint16_t i = course->next[0]; i != 0; i = course->next[i]) {
        const struct paml_plan_item *item = &question->items[i - 1];

        if (is_hopeless(question, course, item)) {
            continue;
        }
        if (policy == URGENT && item->deadline_ns != 0) {
            return item->deadline_ns;
        }
        rows += item->rows;
        if (policy == FULL && rows >= question->max_rows) {
            break;
        }
    }
    rows = rows < question->max_rows ? rows : question->max_rows;
    return policy == FULL ? course->now_ns + cost_of(question, rows) : 0;
}

static void
follow(const struct question *question, const struct course *course, enum policy policy,
       struct batch *batch)
{
    choose(question, course, limit_of(question, course, policy), batch);
    if (batch->count == 0) {
        choose(question, course, 0, batch);
    }
}

static void
course_finish(const struct question *question, struct course *course,
              enum policy policy)
{
    struct batch batch;

    follow(question, course, policy, &batch);
    while (batch.count > 0) {
        course_run(question, course, &batch);
        follow(question, course, policy, &batch);
    }
}

/* How many more are met by the one than by the other, of the highest priority at which
   that differs. */
static int
more_met(const struct question *question, const struct course *one,
         const struct course *other)
{
    int more = 0;

    for (uint32_t i = 0; i < question->n; i++) {
        if (i > 0 && more != 0 &&
            question->items[i].priority != question->items[i - 1].priority) {
            break;
        }
        more += one->met[i] - other->met[i];
    }
    return more;
}

/* What has been found so far. */
struct best {
    struct batch batch;
    struct course course;
};

/* Of two first batches after which equally many are met: more rows that are in time,
   and then fewer that aren't. */
static bool
is_better(const struct batch *one, const struct batch *other)
{
    if (one->in_time != other->in_time) {
        return one->in_time > other->in_time;
    }
    return one->rows < other->rows;
}

/* Tries a first batch out with each way to go on. */
static void
try_batch(const struct question *question, const struct course *start,
          const struct batch *batch, struct best *best)
{
    struct course first = *start, course;

    course_run(question, &first, batch);
    for (int policy = 0; policy < POLICIES; policy++) {
        int more;

        course = first;
        course_finish(question, &course, (enum policy)policy);
        more = more_met(question, &course, &best->course);
        if (more > 0 || (more == 0 && is_better(batch, &best->batch))) {
            best->batch = *batch;
            best->course = course;
        }
    }
}

/* First batches: the policies', and those limited by the deadlines of the most urgent,
   the first of which is URGENT's. */
static void
search(const struct question *question, const struct course *start, struct best *best)
{
    struct batch batch;
    int64_t limits[LIMITS];
    int count = 0;

    follow(question, start, IN_ORDER, &batch);
    try_batch(question, start, &batch, best);
    follow(question, start, FULL, &batch);
    try_batch(question, start, &batch, best);
    for (uint16_t i = start->next[0]; i != 0 && count < LIMITS; i = start->next[i]) {
        int64_t limit_ns = question->items[i - 1].deadline_ns;
        bool known = limit_ns == 0;

        for (int j = 0; j < count; j++) {
            known = known || limits[j] == limit_ns;
        }
        if (known) {
            continue;
        }
        limits[count++] = limit_ns;
        choose(question, start, limit_ns, &batch);
        if (batch.count > 0) {
            try_batch(question, start, &batch, best);
        }
    }
}

uint32_t
paml_plan(const struct paml_plan_item *items, uint32_t n, const struct paml_line *line,
          int64_t now_ns, int64_t max_rows, uint8_t *verdict)
{
    struct question question = {items, n, *line, now_ns, max_rows};
    struct course start = {.now_ns = now_ns};
    struct best best;
    uint16_t *link = &start.next[0];
    bool all_met = true;

    for (uint32_t i = 0; i < n; i++) {
        start.met[i] = items[i].deadline_ns == 0;
        verdict[i] = PAML_PLAN_HOPELESS;
        if (!is_hopeless(&question, &start, &items[i])) {
            verdict[i] = PAML_PLAN_LEAVE;
            *link = (uint16_t)(i + 1);
            link = &start.next[i + 1];
        }
    }
    follow(&question, &start, IN_ORDER, &best.batch);
    best.course = start;
    course_finish(&question, &best.course, IN_ORDER);
    for (uint32_t i = 0; i < n; i++) {
        all_met = all_met && (best.course.met[i] || verdict[i] == PAML_PLAN_HOPELESS);
    }
    if (!all_met) {
        search(&question, &start, &best);
    }
    for (uint32_t i = 0; i < best.batch.count; i++) {
        verdict[best.batch.items[i]] = PAML_PLAN_TAKE;
    }
    return best.batch.count;
}
