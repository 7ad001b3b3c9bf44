#include "schedule.h"

#include <stdlib.h>
#include <string.h>

#include "plan.h"
#include "session.h"
#include "window.h"

/* One run in so many is led by the oldest op, once it has seen so many runs begin. */
#define AGEING_TURN 8
#define AGEING_RUNS 64

/* How many ops beyond a full batch are looked at for similar lengths, or for deadlines:
   so many times max_rows, and never more than can be planned. */
#define WINDOW_BATCHES 4

/* A cost counts against deadlines once it was seen in so many runs. */
#define TRUSTED_RUNS 4

/* An estimate by which nothing can be met is tried again after so long. */
#define PROBE_NS INT64_C(1000000000)

void
paml_schedule_init(struct paml_schedule *schedule, const struct paml_batching *batching,
                   int64_t max_rows)
{
    memset(schedule, 0, sizeof(*schedule));
    schedule->batching = batching;
    schedule->max_rows = max_rows;
    paml_order_init(&schedule->alone.order);
}

void
paml_schedule_destroy(struct paml_schedule *schedule)
{
    struct paml_group *group;

    while ((group = schedule->spare) != NULL) {
        schedule->spare = group->next;
        free(group);
    }
}

/* --- groups --- */

static struct paml_group **
group_chain(struct paml_schedule *schedule, uint64_t key)
{
    return &schedule->chains[key % PAML_GROUP_CHAINS];
}

/* The group of the key, made if need be; ops run alone where memory runs out. */
static struct paml_group *
group_for(struct paml_schedule *schedule, uint64_t key)
{
    struct paml_group **chain, *group;

    if (key == 0 || schedule->batching == NULL) {
        return &schedule->alone;
    }
    chain = group_chain(schedule, key);
    for (group = *chain; group != NULL; group = group->chain) {
        if (group->key == key) {
            return group;
        }
    }
    group = schedule->spare;
    if (group != NULL) {
        schedule->spare = group->next;
    } else if ((group = malloc(sizeof(*group))) == NULL) {
        return &schedule->alone;
    }
    memset(group, 0, sizeof(*group));
    group->key = key;
    paml_order_init(&group->order);
    group->chain = *chain;
    *chain = group;
    return group;
}

static void
group_link(struct paml_schedule *schedule, struct paml_group *group)
{
    group->previous = NULL;
    group->next = schedule->groups;
    if (group->next != NULL) {
        group->next->previous = group;
    }
    schedule->groups = group;
}

/* An empty group is no longer looked at; one of a key goes. */
static void
group_unlink(struct paml_schedule *schedule, struct paml_group *group)
{
    struct paml_group **link;

    *(group->previous != NULL ? &group->previous->next : &schedule->groups) =
        group->next;
    if (group->next != NULL) {
        group->next->previous = group->previous;
    }
    if (group != &schedule->alone) {
        for (link = group_chain(schedule, group->key); *link != group;
             link = &(*link)->chain) {
        }
        *link = group->chain;
        group->next = schedule->spare;
        schedule->spare = group;
    }
}

/* --- adding and removing --- */

static int64_t
halfway_of(const struct paml_op *op)
{
    return op->submitted_ns + (op->deadline_ns - op->submitted_ns) / 2;
}

static void
group_note_deadline(struct paml_group *group, const struct paml_op *op)
{
    if (op->deadline_ns != 0) {
        int64_t halfway_ns = halfway_of(op);

        group->deadline_ns =
            op->deadline_ns < group->deadline_ns ? op->deadline_ns : group->deadline_ns;
        group->halfway_ns =
            halfway_ns < group->halfway_ns ? halfway_ns : group->halfway_ns;
    }
}

/* Of a group that is less than a batch: looks at what waits, once after such a leaving.
 */
static void
group_refresh_deadlines(const struct paml_schedule *schedule, struct paml_group *group)
{
    group->deadline_ns = group->halfway_ns = INT64_MAX;
    group->stale = false;
    for (const struct paml_op *op = schedule->oldest; op != NULL; op = op->newer) {
        if (op->group == group) {
            group_note_deadline(group, op);
        }
    }
}

static void
admit(struct paml_schedule *schedule, struct paml_op *op)
{
    struct paml_group *group = group_for(schedule, op->batch_key);

    op->place = PAML_ADMITTED;
    op->group = group;
    op->sequence = schedule->sequence++;
    op->runs_before = schedule->runs;
    op->newer = NULL;
    op->older = schedule->newest;
    *(op->older != NULL ? &op->older->newer : &schedule->oldest) = op;
    schedule->newest = op;
    if (group->count++ == 0) {
        group->since_ns = op->submitted_ns;
        group->deadline_ns = group->halfway_ns = INT64_MAX;
        group->stale = false;
        group_link(schedule, group);
    }
    group_note_deadline(group, op);
    paml_order_push(&group->order, op);
    group->rows += op->rows;
    schedule->rows += paml_op_places(op);
    schedule->count++;
}

static void
park(struct paml_schedule *schedule, struct paml_op *op)
{
    op->place = PAML_PARKED;
    op->next = NULL;
    op->previous = schedule->parked_last;
    *(op->previous != NULL ? &op->previous->next : &schedule->parked_first) = op;
    schedule->parked_last = op;
    schedule->parked_rows += paml_op_places(op);
}

static void
unpark(struct paml_schedule *schedule, struct paml_op *op)
{
    *(op->previous != NULL ? &op->previous->next : &schedule->parked_first) = op->next;
    *(op->next != NULL ? &op->next->previous : &schedule->parked_last) = op->previous;
    op->next = op->previous = NULL;
    op->place = PAML_NOWHERE;
    schedule->parked_rows -= paml_op_places(op);
}

static void
hold(struct paml_schedule *schedule, struct paml_op *op)
{
    op->place = PAML_HELD;
    op->older = NULL;
    op->newer = schedule->held;
    if (op->newer != NULL) {
        op->newer->older = op;
    }
    schedule->held = op;
}

static void
unhold(struct paml_schedule *schedule, struct paml_op *op)
{
    *(op->older != NULL ? &op->older->newer : &schedule->held) = op->newer;
    if (op->newer != NULL) {
        op->newer->older = op->older;
    }
    op->older = op->newer = NULL;
    op->place = PAML_NOWHERE;
}

/* A request of more rows than are ever admitted has the place to itself. */
static bool
has_room(const struct paml_schedule *schedule, const struct paml_op *op)
{
    return schedule->count == 0 ||
           schedule->rows + paml_op_places(op) <= schedule->max_rows;
}

static void
admit_parked(struct paml_schedule *schedule)
{
    struct paml_op *op;

    while ((op = schedule->parked_first) != NULL && has_room(schedule, op)) {
        unpark(schedule, op);
        admit(schedule, op);
    }
}

static void
admit_or_park(struct paml_schedule *schedule, struct paml_op *op)
{
    if (schedule->parked_first == NULL && has_room(schedule, op)) {
        admit(schedule, op);
    } else {
        park(schedule, op);
    }
}

void
paml_schedule_add(struct paml_schedule *schedule, struct paml_op *op)
{
    if (op->session != NULL && !paml_session_enter(op->session, op)) {
        hold(schedule, op);
    } else {
        admit_or_park(schedule, op);
    }
}

void
paml_schedule_add_next(struct paml_schedule *schedule, struct paml_op *op)
{
    unhold(schedule, op);
    admit_or_park(schedule, op);
}

/* The group's first of those that came after `op`, which leaves, has waited longest
   now. Those that came before it, if any, have not waited longer than was known. */
static void
group_forget_oldest(struct paml_group *group, const struct paml_op *op)
{
    const struct paml_op *next = op->newer;

    while (next != NULL && next->group != group) {
        next = next->newer;
    }
    if (next != NULL) {
        group->since_ns = next->submitted_ns;
    }
}

/* What is left of the books once the op is out of its order. */
static void
forget(struct paml_schedule *schedule, struct paml_op *op)
{
    struct paml_group *group = op->group;

    if (group != &schedule->alone && schedule->batching->max_delay_ns > 0) {
        if (op->submitted_ns <= group->since_ns) {
            group_forget_oldest(group, op);
        }
        group->stale = group->stale || (op->deadline_ns != 0 &&
                                        (op->deadline_ns == group->deadline_ns ||
                                         halfway_of(op) == group->halfway_ns));
    }
    *(op->older != NULL ? &op->older->newer : &schedule->oldest) = op->newer;
    *(op->newer != NULL ? &op->newer->older : &schedule->newest) = op->older;
    op->older = op->newer = NULL;
    op->group = NULL;
    op->place = PAML_NOWHERE;
    group->rows -= op->rows;
    schedule->rows -= paml_op_places(op);
    schedule->count--;
    if (--group->count == 0) {
        group_unlink(schedule, group);
    }
}

bool
paml_schedule_remove(struct paml_schedule *schedule, struct paml_op *op)
{
    switch (op->place) {
    case PAML_PARKED:
        unpark(schedule, op);
        break;
    case PAML_HELD:
        if (!paml_session_leave(op->session, op)) {
            return false;
        }
        unhold(schedule, op);
        break;
    default:
        paml_order_remove(&op->group->order, op);
        forget(schedule, op);
    }
    admit_parked(schedule); /* the one that was parked may have been in the way */
    return true;
}

struct paml_op *
paml_schedule_least(const struct paml_schedule *schedule)
{
    struct paml_op *op, *least = schedule->newest;

    for (op = least; op != NULL; op = op->older) {
        if (op->priority < least->priority) {
            least = op;
        }
    }
    /* The first of the held came last. */
    for (op = schedule->held; op != NULL; op = op->newer) {
        if (least == NULL || op->priority < least->priority ||
            (op->priority == least->priority && least->place != PAML_HELD)) {
            least = op;
        }
    }
    return least;
}

struct paml_op *
paml_schedule_take_all(struct paml_schedule *schedule)
{
    struct paml_op *list = NULL, **link = &list, *op, *newer;

    while ((op = schedule->oldest) != NULL) {
        paml_order_remove(&op->group->order, op);
        forget(schedule, op);
        *link = op;
        link = &op->next;
    }
    while ((op = schedule->parked_first) != NULL) {
        unpark(schedule, op);
        *link = op;
        link = &op->next;
    }
    for (op = schedule->held; op != NULL; op = newer) {
        newer = op->newer;
        if (paml_session_leave(op->session, op)) {
            unhold(schedule, op);
            op->place = PAML_HELD; /* not the one that its session is busy with */
            *link = op;
            link = &op->next;
        }
    }
    *link = NULL;
    return list;
}

/* --- taking --- */

void
paml_batch_init(struct paml_batch *batch)
{
    memset(batch, 0, sizeof(*batch));
}

void
paml_batch_destroy(struct paml_batch *batch)
{
    free(batch->ops);
}

/* Room for one more. */
static bool
batch_has_room(struct paml_batch *batch)
{
    uint32_t capacity = batch->capacity > 0 ? 2 * batch->capacity : 64;
    struct paml_op **ops;

    if (batch->n < batch->capacity) {
        return true;
    }
    if (batch->n >= PAML_BATCH_MOST ||
        (ops = realloc(batch->ops, capacity * sizeof(*ops))) == NULL) {
        return false;
    }
    batch->ops = ops;
    batch->capacity = capacity;
    return true;
}

/* An op that is out of its order already. */
static void
claim(struct paml_schedule *schedule, struct paml_batch *batch, struct paml_op *op)
{
    forget(schedule, op);
    paml_op_set_state(op, PAML_OP_CLAIMED);
    batch->ops[batch->n++] = op;
    batch->rows += op->rows;
}

static void
give_up(struct paml_schedule *schedule, struct paml_batch *batch, struct paml_op *op)
{
    forget(schedule, op);
    paml_op_set_state(op, PAML_OP_CLAIMED);
    op->next = batch->hopeless;
    batch->hopeless = op;
}

/* Of a run that such an op leads. */
static int64_t
rows_of_a_run(const struct paml_schedule *schedule, const struct paml_op *leader,
              const struct paml_cost_model *cost)
{
    int64_t cap;

    if (leader->group == &schedule->alone) {
        return 1;
    }
    cap = paml_cost_cap(cost, paml_batch_cost_key(schedule->batching, leader));
    return cap < schedule->batching->max_rows ? cap : schedule->batching->max_rows;
}

/* Whether no more would join a run of the group's. */
static bool
fills_a_run(const struct paml_schedule *schedule, const struct paml_group *group,
            const struct paml_cost_model *cost)
{
    return group == &schedule->alone ||
           group->rows >= rows_of_a_run(schedule, paml_order_peek(&group->order), cost);
}

/* When the group may be taken, full or not. */
static int64_t
released_at(const struct paml_schedule *schedule, struct paml_group *group,
            const struct paml_cost_model *cost)
{
    int64_t delay_ns =
        schedule->batching != NULL ? schedule->batching->max_delay_ns : 0;
    const struct paml_op *head;
    int64_t at, latest;

    if (delay_ns == 0 || fills_a_run(schedule, group, cost)) {
        return 0;
    }
    head = paml_order_peek(&group->order);
    at = group->since_ns + delay_ns;
    if (group->stale) {
        group_refresh_deadlines(schedule, group);
    }
    if (group->deadline_ns != INT64_MAX) {
        /* Waiting for company must not make one late: no more than half of its time is
           spent, also where a run costs little or nobody knows what. */
        latest =
            group->deadline_ns -
            2 * paml_cost_predict(cost, paml_batch_cost_key(schedule->batching, head),
                                  group->rows + 1);
        latest = group->halfway_ns < latest ? group->halfway_ns : latest;
        at = latest < at ? latest : at;
    }
    return at;
}

/* Whether a run is worth beginning while the device is busy. Which one is then as ever:
   whoever is most urgent isn't passed for ever by those who come in great numbers. */
static bool
some_group_fills_a_run(const struct paml_schedule *schedule,
                       const struct paml_taker *taker)
{
    const struct paml_group *group = schedule->groups;

    while (group != NULL && !fills_a_run(schedule, group, taker->cost)) {
        group = group->next;
    }
    return group != NULL;
}

/* The op that leads the next run; NULL: none may yet, see batch->wait_until_ns. */
static struct paml_op *
choose_leader(struct paml_schedule *schedule, const struct paml_taker *taker,
              int64_t now_ns, bool at_once, struct paml_batch *batch)
{
    struct paml_group *group;
    struct paml_op *leader = NULL, *head;
    int64_t at;

    if (taker->busy_ns > 0 && !at_once && !some_group_fills_a_run(schedule, taker)) {
        batch->wait_until_ns = INT64_MAX;
        return NULL;
    }
    if (schedule->runs % AGEING_TURN == AGEING_TURN - 1 && schedule->oldest != NULL &&
        schedule->runs - schedule->oldest->runs_before >= AGEING_RUNS &&
        (at_once ||
         released_at(schedule, schedule->oldest->group, taker->cost) <= now_ns)) {
        return schedule->oldest;
    }
    for (group = schedule->groups; group != NULL; group = group->next) {
        at = at_once ? 0 : released_at(schedule, group, taker->cost);
        if (at > now_ns) {
            if (batch->wait_until_ns == 0 || at < batch->wait_until_ns) {
                batch->wait_until_ns = at;
            }
            continue;
        }
        head = paml_order_peek(&group->order);
        if (leader == NULL || paml_order_before(head, leader)) {
            leader = head;
        }
    }
    return leader;
}

/* Splits the window into what the next run takes, what is answered, and what goes back.
   Planned is from when the device is expected to be free; but nobody is refused for
   that. */
static void
window_plan(struct paml_schedule *schedule, struct paml_window *window,
            struct paml_group *group, const struct paml_line *line,
            const struct paml_taker *taker, int64_t now_ns, int64_t max_rows,
            struct paml_batch *batch)
{
    struct paml_plan_item items[PAML_PLAN_MOST];
    uint8_t verdict[PAML_PLAN_MOST];
    uint32_t probe = 0;

    for (uint32_t i = 0; i < window->n; i++) {
        const struct paml_op *op = window->ops[i];
        items[i] = (struct paml_plan_item){
            op->deadline_ns != 0 ? paml_window_due(op) : 0, op->rows, op->priority};
        if (op->deadline_ns > window->ops[probe]->deadline_ns) {
            probe = i;
        }
    }
    if (paml_plan(items, window->n, line, now_ns + taker->busy_ns, max_rows, verdict) ==
            0 &&
        taker->busy_ns == 0 && now_ns - taker->last_run_ns > PROBE_NS &&
        window->ops[probe]->deadline_ns > now_ns) {
        verdict[probe] = PAML_PLAN_TAKE; /* the estimate is old: find out */
    }
    for (uint32_t i = 0; i < window->n; i++) {
        if (verdict[i] == PAML_PLAN_TAKE && batch_has_room(batch)) {
            claim(schedule, batch, window->ops[i]);
        } else if (verdict[i] == PAML_PLAN_HOPELESS &&
                   items[i].deadline_ns <
                       now_ns + paml_plan_cost(line, items[i].rows, max_rows)) {
            give_up(schedule, batch, window->ops[i]);
        } else {
            paml_order_push(&group->order, window->ops[i]);
            batch->release = PAML_RELEASE_DEADLINE;
        }
    }
}

/* The window's first run now, as far as they fit, the others go back. */
static void
window_take(struct paml_schedule *schedule, struct paml_window *window,
            struct paml_group *group, int64_t max_rows, struct paml_batch *batch)
{
    bool full = false;

    for (uint32_t i = 0; i < window->n; i++) {
        struct paml_op *op = window->ops[i];
        full = full || (i > 0 && batch->rows + op->rows > max_rows) ||
               !batch_has_room(batch);
        if (full) {
            paml_order_push(&group->order, op);
        } else {
            claim(schedule, batch, op);
        }
    }
    if (full || batch->rows >= max_rows) {
        batch->release = PAML_RELEASE_FULL;
    }
}

/* Takes the leader and, most urgent first, what fits beside it. */
static void
take_in_order(struct paml_schedule *schedule, struct paml_group *group,
              struct paml_op *leader, int64_t max_rows, struct paml_batch *batch)
{
    struct paml_op *op;
    bool alone = group == &schedule->alone;

    paml_order_remove(&group->order, leader);
    claim(schedule, batch, leader);
    if (alone || leader->rows >= max_rows) {
        batch->release = alone ? PAML_RELEASE_ALONE : PAML_RELEASE_FULL;
        return;
    }
    while ((op = paml_order_peek(&group->order)) != NULL) {
        if (batch->rows + op->rows > max_rows || !batch_has_room(batch) ||
            !paml_batch_same(schedule->batching, leader, op)) {
            batch->release = PAML_RELEASE_FULL;
            return;
        }
        paml_order_pop(&group->order);
        claim(schedule, batch, op);
        if (batch->rows >= max_rows) {
            batch->release = PAML_RELEASE_FULL;
            return;
        }
    }
}

int
paml_schedule_take(struct paml_schedule *schedule, const struct paml_taker *taker,
                   int64_t now_ns, bool at_once, struct paml_batch *batch)
{
    const struct paml_cost_model *cost = taker->cost;
    struct paml_op *leader;
    struct paml_group *group;
    struct paml_line line = {0, 0};
    struct paml_window window;
    int64_t max_rows, most;
    bool alone, uneven, dropped = false;

    batch->n = 0;
    batch->rows = 0;
    batch->hopeless = NULL;
    batch->wait_until_ns = 0;
    if (!batch_has_room(batch)) {
        return -1;
    }
    leader = choose_leader(schedule, taker, now_ns, at_once, batch);
    if (leader == NULL) {
        return 0;
    }
    group = leader->group;
    alone = group == &schedule->alone;
    max_rows = rows_of_a_run(schedule, leader, cost);
    batch->release = PAML_RELEASE_DRAINED;
    if (!alone && !at_once && schedule->batching->max_delay_ns > 0) {
        batch->release = PAML_RELEASE_DELAY;
    }
    uneven = !alone && paml_window_is_uneven(schedule->batching, leader);
    if (leader->deadline_ns != 0 && !uneven) {
        line = paml_cost_line_of(cost, paml_batch_cost_key(schedule->batching, leader),
                                 TRUSTED_RUNS);
    }
    if (!uneven && line.a == 0 && line.b == 0) {
        take_in_order(schedule, group, leader, max_rows, batch);
    } else {
        most = WINDOW_BATCHES * max_rows;
        most = alone ? 1 : most < PAML_PLAN_MOST ? most : PAML_PLAN_MOST;
        paml_window_open(&window, schedule->batching, &group->order, leader,
                         (uint32_t)most);
        if (uneven) {
            dropped = paml_window_keep_similar(&window, schedule->batching,
                                               &group->order, cost, &max_rows);
            line = paml_cost_line_of(cost, window.cost_key, TRUSTED_RUNS);
        }
        if (dropped) {
            batch->release = PAML_RELEASE_SHAPE;
        }
        if (paml_window_is_in_time(&window, &line, now_ns + taker->busy_ns, max_rows)) {
            window_take(schedule, &window, group, max_rows, batch);
        } else {
            window_plan(schedule, &window, group, &line, taker, now_ns, max_rows,
                        batch);
        }
        if (alone && batch->n > 0) {
            batch->release = PAML_RELEASE_ALONE;
        }
        if (batch->n == 0 && taker->busy_ns > 0) {
            batch->wait_until_ns = INT64_MAX; /* the end of what is up will tell */
        }
    }
    schedule->runs += batch->n > 0;
    admit_parked(schedule);
    return 0;
}
