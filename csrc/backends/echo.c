#include "echo.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "mailbox.h"

struct paml_echo *
paml_echo_new(int64_t delay_ns, int64_t row_ns, bool busy)
{
    struct paml_echo *echo = calloc(1, sizeof(*echo));

    if (echo != NULL) {
        atomic_init(&echo->refs, 1);
        echo->delay_ns = delay_ns;
        echo->row_ns = row_ns;
        echo->busy = busy;
        pthread_mutex_init(&echo->lock, NULL);
        pthread_cond_init(&echo->gate, NULL);
    }
    return echo;
}

/* Thread: any. Locks: none. */
void
paml_echo_unref(struct paml_echo *echo)
{
    if (atomic_fetch_sub_explicit(&echo->refs, 1, memory_order_acq_rel) == 1) {
        pthread_mutex_destroy(&echo->lock);
        pthread_cond_destroy(&echo->gate);
        free(echo);
    }
}

/* Thread: any. Locks: takes the script's. */
void
paml_echo_hold(struct paml_echo *echo)
{
    pthread_mutex_lock(&echo->lock);
    echo->held = true;
    echo->permits = 0;
    pthread_mutex_unlock(&echo->lock);
}

/* Thread: any. Locks: takes the script's. */
void
paml_echo_release(struct paml_echo *echo, int64_t runs)
{
    pthread_mutex_lock(&echo->lock);
    if (runs < 0) {
        echo->held = false;
    } else {
        echo->permits += runs;
    }
    pthread_cond_broadcast(&echo->gate);
    pthread_mutex_unlock(&echo->lock);
}

/* Thread: any. Locks: takes the script's. */
void
paml_echo_fail(struct paml_echo *echo, int64_t runs, int code, const char *message)
{
    pthread_mutex_lock(&echo->lock);
    echo->fail_runs = runs;
    echo->fail_code = code;
    snprintf(echo->fail_message, sizeof(echo->fail_message), "%s", message);
    pthread_mutex_unlock(&echo->lock);
}

/* Thread: any. Locks: takes the script's. */
void
paml_echo_poison(struct paml_echo *echo, bool poisoned, double value)
{
    pthread_mutex_lock(&echo->lock);
    echo->poisoned = poisoned;
    echo->poison = value;
    pthread_mutex_unlock(&echo->lock);
}

/* Thread: any. Locks: takes the script's. */
void
paml_echo_limit(struct paml_echo *echo, int64_t rows)
{
    pthread_mutex_lock(&echo->lock);
    echo->rows_most = rows;
    pthread_mutex_unlock(&echo->lock);
}

/* Takes the watchers that `begun` satisfies off the list.
   Locks: the caller holds the script's. */
static struct paml_op *
echo_satisfied(struct paml_echo *echo)
{
    struct paml_op **link = &echo->watchers, *op, *satisfied = NULL;

    while ((op = *link) != NULL) {
        if (echo->begun >= op->rows) {
            *link = op->next;
            op->next = satisfied;
            satisfied = op;
        } else {
            link = &op->next;
        }
    }
    return satisfied;
}

static void
post_all(struct paml_op *ops)
{
    struct paml_op *op;

    while ((op = ops) != NULL) {
        ops = op->next;
        paml_mailbox_post(op->mailbox, op);
    }
}

/* Thread: any. Locks: takes the script's. */
void
paml_echo_watch(struct paml_echo *echo, uint32_t runs, struct paml_op *op)
{
    struct paml_op *satisfied;

    op->rows = runs;
    pthread_mutex_lock(&echo->lock);
    op->next = echo->watchers;
    echo->watchers = op;
    satisfied = echo_satisfied(echo);
    pthread_mutex_unlock(&echo->lock);
    post_all(satisfied);
}

/* Thread: any. Locks: takes the script's. */
bool
paml_echo_unwatch(struct paml_echo *echo, struct paml_op *op)
{
    struct paml_op **link;
    bool found = false;

    pthread_mutex_lock(&echo->lock);
    for (link = &echo->watchers; *link != NULL; link = &(*link)->next) {
        if (*link == op) {
            *link = op->next;
            found = true;
            break;
        }
    }
    pthread_mutex_unlock(&echo->lock);
    return found;
}

int
paml_echo_load(const struct paml_load_spec *spec, void **program,
               struct paml_error *err)
{
    struct paml_echo *echo = spec->options;

    (void)err;
    atomic_fetch_add_explicit(&echo->refs, 1, memory_order_relaxed);
    *program = echo;
    return 0;
}

void
paml_echo_unload(void *program)
{
    paml_echo_unref(program);
}

const struct paml_entry *
paml_echo_describe(void *program)
{
    static const struct paml_entry entry = {.name = "echo", .variadic = 1};

    (void)program;
    return &entry;
}

int
paml_echo_check_device(DLDevice device, struct paml_error *err)
{
    char name[64];

    if (device.device_type != kDLCPU) {
        return paml_fail(err, PAML_ERR_LOAD, "device=%s: the echo backend has only cpu",
                         paml_device_name(device, name, sizeof(name)));
    }
    return PAML_OK;
}

static int
echo_open(void *program, DLDevice device, int threads, void **instance,
          struct paml_error *err)
{
    (void)threads;
    *instance = program;
    return paml_echo_check_device(device, err);
}

static void
echo_close(void *instance)
{
    (void)instance;
}

static int
echo_copy(const struct paml_value *from, struct paml_value *to)
{
    char *text;

    switch (from->kind) {
    case PAML_TENSOR:
        return paml_tensor_clone(&from->tensor, to);
    case PAML_STRING:
    case PAML_BYTES:
        text = malloc(from->string.size + 1);
        if (text == NULL) {
            return -1;
        }
        memcpy(text, from->string.data, from->string.size);
        *to = *from;
        to->string.data = to->owner = text;
        to->release = free;
        return 0;
    default:
        *to = *from;
        to->owner = NULL;
        to->release = NULL;
        return 0;
    }
}

/* Whether a contiguous tensor of numbers holds the value. */
static bool
echo_holds(const DLTensor *tensor, double value)
{
    int64_t elements = paml_tensor_elements(tensor);
    const char *data = (const char *)tensor->data + tensor->byte_offset;
    uint8_t code = tensor->dtype.code, bits = tensor->dtype.bits;

    for (int64_t i = 0; paml_tensor_is_contiguous(tensor) && i < elements; i++) {
        if ((code == kDLFloat && bits == 32 && ((const float *)data)[i] == value) ||
            (code == kDLFloat && bits == 64 && ((const double *)data)[i] == value) ||
            (code == kDLInt && bits == 64 &&
             (double)((const int64_t *)data)[i] == value) ||
            (code == kDLUInt && bits == 8 &&
             (double)((const uint8_t *)data)[i] == value)) {
            return true;
        }
    }
    return false;
}

static uint32_t
echo_rows(const struct paml_run *run)
{
    const struct paml_value *first = run->inputs;

    return run->n_inputs > 0 && first->kind == PAML_TENSOR && first->tensor.ndim > 0
               ? (uint32_t)first->tensor.shape[0]
               : 1;
}

/* What is to go wrong with this run. Locks: the caller holds the script's. */
static int
echo_verdict(struct paml_echo *echo, const struct paml_run *run, struct paml_error *err)
{
    const struct paml_value *first = run->inputs;

    if (echo->fail_runs > 0) {
        echo->fail_runs--;
        return paml_fail(err, echo->fail_code, "%s", echo->fail_message);
    }
    if (echo->rows_most > 0 && echo_rows(run) > echo->rows_most) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for %u rows", echo_rows(run));
    }
    if (echo->poisoned && run->n_inputs > 0 && first->kind == PAML_TENSOR &&
        echo_holds(&first->tensor, echo->poison)) {
        return paml_fail(err, PAML_ERR_BACKEND, "the input holds %g", echo->poison);
    }
    return PAML_OK;
}

/* Locks: the caller holds the script's, which is let go of for a moment. */
static void
echo_count(struct paml_echo *echo, const struct paml_run *run)
{
    struct paml_op *satisfied;

    echo->seen[echo->begun++ % PAML_ECHO_SEEN] = echo_rows(run);
    if (echo->watchers != NULL) {
        satisfied = echo_satisfied(echo);
        pthread_mutex_unlock(&echo->lock);
        post_all(satisfied);
        pthread_mutex_lock(&echo->lock);
    }
}

/* Thread: worker. GIL: not held. Locks: takes the script's. */
void
paml_echo_begin(struct paml_echo *echo, const struct paml_run *run)
{
    pthread_mutex_lock(&echo->lock);
    echo_count(echo, run);
    pthread_mutex_unlock(&echo->lock);
}

/* Thread: whichever runs it. GIL: not held. Locks: takes the script's, waits at the
   gate. */
static int
echo_script(struct paml_echo *echo, const struct paml_run *run, bool begun,
            struct paml_error *err)
{
    int code;

    pthread_mutex_lock(&echo->lock);
    if (!begun) {
        echo_count(echo, run);
    }
    while (echo->held && echo->permits == 0) {
        pthread_cond_wait(&echo->gate, &echo->lock);
    }
    if (echo->held) {
        echo->permits--;
    }
    code = echo_verdict(echo, run, err);
    echo->finished++;
    pthread_mutex_unlock(&echo->lock);
    return code;
}

/* Thread: whichever runs it. GIL: not held. Locks: as echo_script. */
int
paml_echo_run(struct paml_echo *echo, struct paml_run *run, bool begun,
              struct paml_error *err)
{
    int64_t delay_ns = echo->delay_ns + echo->row_ns * echo_rows(run);
    int64_t until = delay_ns > 0 ? paml_now_ns() + delay_ns : 0;
    struct paml_value *values;
    uint32_t wrap = run->n_arguments != 1;
    int code = echo_script(echo, run, begun, err);

    if (code != PAML_OK) {
        return code;
    }
    if (until != 0) {
        if (!echo->busy) {
            paml_sleep_until(until);
        }
        while (paml_now_ns() < until) {
            paml_cpu_relax();
        }
    }
    values = paml_outputs_append(run->outputs, run->n_inputs + wrap);
    if (values == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for %u output values",
                         run->n_inputs);
    }
    if (wrap) {
        values->kind = PAML_TUPLE;
        values->count = run->n_arguments;
        values++;
    }
    for (uint32_t i = 0; i < run->n_inputs; i++) {
        if (echo_copy(&run->inputs[i], &values[i]) < 0) {
            return paml_fail(err, PAML_ERR_MEMORY, "no memory for a copy of %zu bytes",
                             paml_value_nbytes(&run->inputs[i]));
        }
    }
    return PAML_OK;
}

static int
echo_run(void *instance, struct paml_run *run, struct paml_error *err)
{
    return paml_echo_run(instance, run, false, err);
}

const struct paml_backend paml_echo_backend = {
    .abi_version = PAML_ABI_VERSION,
    .struct_size = sizeof(struct paml_backend),
    .name = "echo",
    .version = "1",
    .load = paml_echo_load,
    .unload = paml_echo_unload,
    .describe = paml_echo_describe,
    .open = echo_open,
    .run = echo_run,
    .close = echo_close,
};
