#include "window.h"

#include <string.h>

#include "axes.h"

/* Padding may add a third to the cells of a batch. */
#define PADDING_NUMERATOR 4
#define PADDING_DENOMINATOR 3

/* An answer is not there when the run ends: the loop has to come by. So much earlier
   than its deadline a request is taken to be due, or by a share of its time. */
#define DELIVERY_NS 1000000
#define DELIVERY_SHARE 32

void
paml_window_open(struct paml_window *window, const struct paml_batching *batching,
                 struct paml_order *order, struct paml_op *leader, uint32_t most)
{
    struct paml_op *op;

    paml_order_remove(order, leader);
    window->ops[0] = leader;
    window->n = 1;
    window->cost_key = 0;
    while (window->n < most && (op = paml_order_peek(order)) != NULL &&
           paml_batch_same(batching, leader, op)) {
        window->ops[window->n++] = paml_order_pop(order);
    }
}

/* --- similar lengths --- */

bool
paml_window_is_uneven(const struct paml_batching *batching,
                      const struct paml_op *leader)
{
    for (uint32_t k = 0; k < batching->n_padded; k++) {
        if (leader->lengths[k] > 0 && batching->padded[k].n_buckets == 0) {
            return true;
        }
    }
    return false;
}

/* The lengths that a run of the op alone would have. */
static void
padded_lengths(const struct paml_batching *batching, const struct paml_op *op,
               int64_t *lengths)
{
    for (uint32_t k = 0; k < PAML_PADDED_MOST; k++) {
        lengths[k] = -1;
        if (k < batching->n_padded && op->lengths[k] >= 0) {
            lengths[k] = paml_padded_length(&batching->padded[k], op->lengths[k]);
        }
    }
}

static void
longest_of(const int64_t *lengths, const int64_t *others, int64_t *longest)
{
    for (uint32_t k = 0; k < PAML_PADDED_MOST; k++) {
        longest[k] = lengths[k] > others[k] ? lengths[k] : others[k];
    }
}

/* One that may come along. */
struct candidate {
    int64_t lengths[PAML_PADDED_MOST];
    int64_t cells;    /* of a row */
    int64_t distance; /* cells of padding in a row of it and one of the leader */
    bool used;
};

static void
candidates_measure(const struct paml_window *window,
                   const struct paml_batching *batching, struct candidate *candidates)
{
    struct candidate *leader = &candidates[0];
    int64_t longest[PAML_PADDED_MOST];

    padded_lengths(batching, window->ops[0], leader->lengths);
    leader->cells = paml_padded_cells(batching, leader->lengths);
    leader->distance = 0;
    leader->used = true;
    for (uint32_t i = 1; i < window->n; i++) {
        struct candidate *candidate = &candidates[i];

        padded_lengths(batching, window->ops[i], candidate->lengths);
        longest_of(candidate->lengths, leader->lengths, longest);
        candidate->cells = paml_padded_cells(batching, candidate->lengths);
        candidate->distance =
            2 * paml_padded_cells(batching, longest) - candidate->cells - leader->cells;
        candidate->used = false;
    }
}

/* Nearest first; of equals the more urgent. Quadratic in what is taken. */
bool
paml_window_keep_similar(struct paml_window *window,
                         const struct paml_batching *batching, struct paml_order *order,
                         const struct paml_cost_model *cost, int64_t *max_rows)
{
    struct candidate candidates[PAML_PLAN_MOST];
    struct paml_op *leader = window->ops[0];
    int64_t rows = leader->rows, real;
    uint32_t n = 0, all = window->n;

    candidates_measure(window, batching, candidates);
    memcpy(window->lengths, candidates[0].lengths, sizeof(window->lengths));
    window->cost_key = paml_batch_cost_key_at(batching, leader, window->lengths);
    real = rows * candidates[0].cells;
    while (rows < *max_rows) {
        int64_t longest[PAML_PADDED_MOST], together, most = *max_rows;
        uint64_t key = window->cost_key;
        uint32_t best = 0;

        for (uint32_t i = 1; i < all; i++) {
            if (!candidates[i].used &&
                (best == 0 || candidates[i].distance < candidates[best].distance)) {
                best = i;
            }
        }
        if (best == 0) {
            break;
        }
        together = rows + window->ops[best]->rows;
        longest_of(window->lengths, candidates[best].lengths, longest);
        if (memcmp(longest, window->lengths, sizeof(longest)) != 0) {
            int64_t cap;
            key = paml_batch_cost_key_at(batching, leader, longest);
            cap = paml_cost_cap(cost, key);
            most = cap < most ? cap : most;
        }
        if (together > most ||
            together * paml_padded_cells(batching, longest) * PADDING_DENOMINATOR >
                (real + window->ops[best]->rows * candidates[best].cells) *
                    PADDING_NUMERATOR) {
            break;
        }
        candidates[best].used = true;
        rows = together;
        real += window->ops[best]->rows * candidates[best].cells;
        memcpy(window->lengths, longest, sizeof(longest));
        window->cost_key = key;
        *max_rows = most;
    }
    for (uint32_t i = 0; i < all; i++) {
        if (candidates[i].used) {
            window->ops[n++] = window->ops[i];
        } else {
            paml_order_push(order, window->ops[i]);
        }
    }
    window->n = n;
    return n < all;
}

/* --- in time --- */

int64_t
paml_window_due(const struct paml_op *op)
{
    int64_t early = (op->deadline_ns - op->submitted_ns) / DELIVERY_SHARE;

    return op->deadline_ns - (early < DELIVERY_NS ? early : DELIVERY_NS);
}

bool
paml_window_is_in_time(const struct paml_window *window, const struct paml_line *line,
                       int64_t now_ns, int64_t max_rows)
{
    int64_t rows = 0, earliest = INT64_MAX;

    for (uint32_t i = 0; i < window->n; i++) {
        const struct paml_op *op = window->ops[i];
        if (i > 0 && rows + op->rows > max_rows) {
            break;
        }
        rows += op->rows;
        if (op->deadline_ns != 0 && paml_window_due(op) < earliest) {
            earliest = paml_window_due(op);
        }
    }
    return earliest == INT64_MAX ||
           now_ns + (int64_t)paml_line_at(line, (double)rows) <= earliest;
}
