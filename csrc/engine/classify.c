/* Which requests may share a run. */
#include "batch.h"

#include <string.h>

#include "axes.h"

/* What a value must agree in with its like of another op: words, then bytes. Hash and
   comparison both go by this. */
struct trait {
    uint32_t n_words;
    size_t size;
    const void *bytes;
    uint64_t words[3 + PAML_MAX_RANK];
};

static int64_t
padded_length_of(const struct paml_batching *batching, const struct paml_op *op, int k)
{
    return paml_padded_length(&batching->padded[k], op->lengths[k]);
}

/* False: a value that can't be compared. */
static bool
trait_of_tensor(const struct paml_batching *batching, const struct paml_op *op,
                const DLTensor *tensor, uint32_t argument, struct trait *trait)
{
    int32_t batch_axis = paml_input_axis(batching, argument);
    uint64_t *word = trait->words + 1;

    *word++ = (uint64_t)tensor->dtype.code | (uint64_t)tensor->dtype.bits << 8 |
              (uint64_t)tensor->dtype.lanes << 16 | (uint64_t)tensor->ndim << 32;
    *word++ = (uint64_t)(uint32_t)tensor->device.device_type |
              (uint64_t)(uint32_t)tensor->device.device_id << 32;
    if (tensor->ndim == 0 && paml_dtype_is_strings(tensor->dtype)) {
        const struct paml_string *string =
            (const void *)((const char *)tensor->data + tensor->byte_offset);
        trait->bytes = string->data;
        trait->size = string->size;
        *word++ = string->size;
    } else if (tensor->ndim == 0) {
        trait->bytes = (const char *)tensor->data + tensor->byte_offset;
        trait->size = paml_dtype_bytes(tensor->dtype, 1);
    }
    for (int32_t axis = 0; axis < tensor->ndim; axis++) {
        int k =
            batching->n_padded > 0 ? paml_padded_input(batching, argument, axis) : -1;
        if (axis == batch_axis) {
            continue;
        }
        if (k < 0) {
            *word++ = (uint64_t)tensor->shape[axis];
        } else if (batching->padded[k].n_buckets > 0) {
            *word++ = (uint64_t)padded_length_of(batching, op, k);
        }
    }
    trait->n_words = (uint32_t)(word - trait->words);
    return tensor->device.device_type == kDLCPU; /* else it couldn't be gathered */
}

static bool
trait_of(const struct paml_batching *batching, const struct paml_op *op,
         const struct paml_value *value, uint32_t argument, struct trait *trait)
{
    trait->n_words = 1;
    trait->size = 0;
    trait->bytes = NULL;
    trait->words[0] = (uint64_t)value->kind | (uint64_t)value->count << 32;
    switch (value->kind) {
    case PAML_TENSOR:
        return trait_of_tensor(batching, op, &value->tensor, argument, trait);
    case PAML_BOOL:
    case PAML_INT:
        trait->words[trait->n_words++] = (uint64_t)value->integer;
        return true;
    case PAML_FLOAT: /* by its bits: a NaN is like itself */
        memcpy(&trait->words[trait->n_words++], &value->real, sizeof(double));
        return true;
    case PAML_STRING:
    case PAML_BYTES:
        trait->words[trait->n_words++] = value->string.size;
        trait->bytes = value->string.data;
        trait->size = value->string.size;
        return true;
    case PAML_NONE:
    case PAML_TUPLE:
    case PAML_LIST:
    case PAML_DICT:
        return true;
    default:
        return false;
    }
}

static uint64_t
mix(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 29;
}

static uint64_t
mix_trait(uint64_t hash, const struct trait *trait)
{
    const char *bytes = trait->bytes;
    size_t left = trait->size;
    uint64_t word;

    for (uint32_t i = 0; i < trait->n_words; i++) {
        hash = mix(hash, trait->words[i]);
    }
    for (; left > 0; left -= left < sizeof(word) ? left : sizeof(word)) {
        word = 0;
        memcpy(&word, bytes + (trait->size - left),
               left < sizeof(word) ? left : sizeof(word));
        hash = mix(hash, word);
    }
    return hash;
}

/* The key of an op whose lengths are known; 0: it can't be compared. */
static uint64_t
key_of(const struct paml_batching *batching, const struct paml_op *op)
{
    struct paml_walk walk = {0, 1, false};
    uint64_t hash = mix(op->n_arguments, op->n_inputs);
    struct trait trait;

    for (uint32_t i = 0; i < op->n_inputs; i++) {
        if (!trait_of(batching, op, &op->inputs[i], walk.argument, &trait)) {
            return 0;
        }
        hash = mix_trait(hash, &trait);
        paml_walk_step(&walk, &op->inputs[i]);
    }
    return hash != 0 ? hash : 1;
}

/* Thread: worker. Locks: none, or the queue's. */
bool
paml_batch_same(const struct paml_batching *batching, const struct paml_op *a,
                const struct paml_op *b)
{
    struct paml_walk walk = {0, 1, false};
    struct trait left, right;

    if (a->n_inputs != b->n_inputs || a->n_arguments != b->n_arguments) {
        return false;
    }
    for (uint32_t i = 0; i < a->n_inputs; i++) {
        if (!trait_of(batching, a, &a->inputs[i], walk.argument, &left) ||
            !trait_of(batching, b, &b->inputs[i], walk.argument, &right) ||
            left.n_words != right.n_words || left.size != right.size ||
            memcmp(left.words, right.words, left.n_words * sizeof(uint64_t)) != 0 ||
            (left.size > 0 && memcmp(left.bytes, right.bytes, left.size) != 0)) {
            return false;
        }
        paml_walk_step(&walk, &a->inputs[i]);
    }
    return true;
}

/* --- rows and lengths --- */

/* Where the op's rows, and its lengths, were seen first: for messages. */
struct census {
    const struct paml_batching *batching;
    struct paml_op *op;
    struct paml_error *err;
    bool any; /* a tensor with axes */
    int64_t rows;
    uint32_t rows_from, lengths_from[PAML_PADDED_MOST];
};

static const char *
name_of(const struct census *census, uint32_t argument, char *text)
{
    return paml_input_text(census->batching, argument, text, PAML_INPUT_TEXT);
}

static int
count_rows(struct census *census, const DLTensor *tensor, uint32_t argument)
{
    int32_t axis = paml_input_axis(census->batching, argument);
    char text[256], name[PAML_INPUT_TEXT], other[PAML_INPUT_TEXT];

    if (axis >= tensor->ndim) {
        return paml_fail(census->err, PAML_ERR_INPUT,
                         "batching= makes axis %d the batch axis of input %s, which "
                         "has shape %s",
                         axis, name_of(census, argument, name),
                         paml_shape_text(tensor, text, sizeof(text)));
    }
    if (!census->any) {
        census->any = true;
        census->rows = tensor->shape[axis];
        census->rows_from = argument;
    }
    if (tensor->shape[axis] != census->rows) {
        return paml_fail(
            census->err, PAML_ERR_INPUT,
            "batching= makes axis %d the batch axis: input %s has %lld "
            "rows, input %s has %lld",
            axis, name_of(census, argument, name), (long long)tensor->shape[axis],
            name_of(census, census->rows_from, other), (long long)census->rows);
    }
    if (census->rows > UINT32_MAX) {
        return paml_fail(census->err, PAML_ERR_INPUT,
                         "input %s has %lld rows, expected %lld at most",
                         name_of(census, argument, name), (long long)census->rows,
                         (long long)UINT32_MAX);
    }
    if (!paml_dtype_is_bytes(tensor->dtype)) {
        return paml_fail(census->err, PAML_ERR_INPUT,
                         "input %s is %s: batching= needs elements of whole bytes",
                         name_of(census, argument, name),
                         paml_dtype_name(tensor->dtype, text, sizeof(text)));
    }
    return PAML_OK;
}

/* The length along padded axis k of a tensor that has a place on it. */
static int
count_length(struct census *census, const DLTensor *tensor, uint32_t argument,
             uint32_t k, int32_t axis)
{
    const struct paml_batching *batching = census->batching;
    const struct paml_padded_axis *padded = &batching->padded[k];
    double fill = argument < batching->n_fills ? batching->fills[argument] : 0;
    int64_t *length = &census->op->lengths[k];
    char text[256], name[PAML_INPUT_TEXT], other[PAML_INPUT_TEXT];

    if (axis >= tensor->ndim) {
        return paml_fail(census->err, PAML_ERR_INPUT,
                         "batching= pads axis %d ('%s') of input %s, which has shape "
                         "%s",
                         axis, padded->name, name_of(census, argument, name),
                         paml_shape_text(tensor, text, sizeof(text)));
    }
    if (*length < 0) {
        *length = tensor->shape[axis];
        census->lengths_from[k] = argument;
    }
    if (tensor->shape[axis] != *length) {
        return paml_fail(census->err, PAML_ERR_INPUT,
                         "input %s has length %lld along axis %d ('%s'), expected "
                         "%lld, as input %s has",
                         name_of(census, argument, name),
                         (long long)tensor->shape[axis], axis, padded->name,
                         (long long)*length,
                         name_of(census, census->lengths_from[k], other));
    }
    if (paml_padded_length(padded, *length) < 0) {
        return paml_fail(census->err, PAML_ERR_INPUT,
                         "input %s has length %lld along axis %d ('%s'), expected "
                         "%lld, the largest bucket, at most",
                         name_of(census, argument, name), (long long)*length, axis,
                         padded->name,
                         (long long)padded->buckets[padded->n_buckets - 1]);
    }
    if (!paml_pad_holds(tensor->dtype, fill)) {
        return paml_fail(census->err, PAML_ERR_INPUT,
                         "input %s is %s, which can't hold %g, the value that it is "
                         "padded with",
                         name_of(census, argument, name),
                         paml_dtype_name(tensor->dtype, text, sizeof(text)), fill);
    }
    return PAML_OK;
}

/* The lengths that a value shows, where its argument is padded. */
static int
count_lengths(struct census *census, const struct paml_value *value, uint32_t argument,
              bool is_top)
{
    const struct paml_batching *batching = census->batching;
    char name[PAML_INPUT_TEXT];
    int code = PAML_OK;

    for (uint32_t k = 0; k < batching->n_padded; k++) {
        const struct paml_padded_axis *padded = &batching->padded[k];
        for (uint32_t i = 0; i < padded->n_inputs && code == PAML_OK; i++) {
            if (padded->inputs[i].position != argument) {
                continue;
            }
            if (value->kind == PAML_TENSOR) {
                code = count_length(census, &value->tensor, argument, k,
                                    padded->inputs[i].axis);
            } else if (is_top &&
                       (value->kind == PAML_BOOL || value->kind == PAML_INT ||
                        value->kind == PAML_FLOAT || value->kind == PAML_STRING ||
                        value->kind == PAML_BYTES)) {
                code = paml_fail(census->err, PAML_ERR_INPUT,
                                 "batching= pads axis %d ('%s') of input %s, which is "
                                 "%s, not a tensor",
                                 padded->inputs[i].axis, padded->name,
                                 name_of(census, argument, name),
                                 paml_kind_name((int)value->kind));
            }
        }
    }
    return code;
}

/* The half octave that a length is in: what costs about the same. */
static uint64_t
length_class(int64_t length)
{
    int leading = 63 - __builtin_clzll((uint64_t)length | 1);

    return (uint64_t)leading * 2 + (leading > 0 && (length >> (leading - 1) & 1));
}

/* Thread: any; the op's owner. GIL: any. Locks: none. */
uint64_t
paml_batch_cost_key_at(const struct paml_batching *batching, const struct paml_op *op,
                       const int64_t *lengths)
{
    uint64_t hash = op->n_inputs;

    if (op->batch_key != 0) {
        hash = op->batch_key;
        for (uint32_t k = 0; k < batching->n_padded; k++) {
            if (batching->padded[k].n_buckets == 0 && lengths[k] > 0) {
                hash = mix(hash, length_class(lengths[k]));
            }
        }
        return hash;
    }
    for (uint32_t i = 0; i < op->n_inputs; i++) {
        const struct paml_value *value = &op->inputs[i];
        hash = mix(hash, value->kind);
        if (value->kind == PAML_TENSOR) {
            for (int32_t axis = 0; axis < value->tensor.ndim; axis++) {
                hash = mix(hash, (uint64_t)value->tensor.shape[axis]);
            }
        }
    }
    return hash;
}

/* Thread: any; the op's owner. GIL: any. Locks: none. */
uint64_t
paml_batch_cost_key(const struct paml_batching *batching, const struct paml_op *op)
{
    return paml_batch_cost_key_at(batching, op, op->lengths);
}

/* Thread: worker. Locks: none. */
uint64_t
paml_batch_cost_key_of(const struct paml_batching *batching,
                       const struct paml_slice *slices, uint32_t n)
{
    int64_t longest[PAML_PADDED_MOST];

    if (n == 1 || batching->n_padded == 0) {
        return paml_batch_cost_key(batching, slices[0].op);
    }
    memcpy(longest, slices[0].op->lengths, sizeof(longest));
    for (uint32_t i = 1; i < n; i++) {
        for (uint32_t k = 0; k < batching->n_padded; k++) {
            int64_t length = slices[i].op->lengths[k];
            longest[k] = length > longest[k] ? length : longest[k];
        }
    }
    return paml_batch_cost_key_at(batching, slices[0].op, longest);
}

/* Thread: any; the op's owner. GIL: any. Locks: none. */
int
paml_batch_classify(const struct paml_batching *batching, struct paml_op *op,
                    struct paml_error *err)
{
    struct census census = {.batching = batching, .op = op, .err = err};
    struct paml_walk walk = {0, 1, false};
    int code = PAML_OK;

    op->rows = 1;
    op->batch_key = 0;
    if (batching->max_rows == 0) {
        return PAML_OK;
    }
    for (uint32_t k = 0; k < PAML_PADDED_MOST; k++) {
        op->lengths[k] = -1;
    }
    for (uint32_t i = 0; i < op->n_inputs && code == PAML_OK; i++) {
        const struct paml_value *value = &op->inputs[i];
        if (value->kind == PAML_TENSOR && value->tensor.ndim > 0) {
            code = count_rows(&census, &value->tensor, walk.argument);
        }
        if (code == PAML_OK && batching->n_padded > 0) {
            code = count_lengths(&census, value, walk.argument, !walk.inside);
        }
        paml_walk_step(&walk, value);
    }
    if (code == PAML_OK && census.any) {
        op->rows = (uint32_t)census.rows;
        op->batch_key = census.rows > 0 ? key_of(batching, op) : 0;
    }
    return code;
}
