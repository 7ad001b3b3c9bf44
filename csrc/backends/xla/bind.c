#include "bind.h"

#include <string.h>

#define PATH_SIZE 200

struct binding {
    const struct paml_xla_bundle *bundle;
    const struct paml_value *values, *end;
    const struct paml_value **leaves;
    int64_t rows; /* -1: not known yet */
    char path[PATH_SIZE];
    struct paml_error *err;
};

static const char *
kind_name(uint32_t kind)
{
    static const char *const names[] = {"None",    "an array", "a bool",   "an int",
                                        "a float", "a str",    "bytes",    "a tuple",
                                        "a list",  "a dict",   "an object"};

    return kind < sizeof(names) / sizeof(names[0]) ? names[kind] : "something else";
}

/* The value after this one and all that is in it, or NULL where that isn't there. */
static const struct paml_value *
after(const struct paml_value *value, const struct paml_value *end)
{
    uint64_t left = 1;

    for (; left > 0; value++) {
        if (value == end) {
            return NULL;
        }
        left--;
        if (value->kind == PAML_TUPLE || value->kind == PAML_LIST) {
            left += value->count;
        } else if (value->kind == PAML_DICT) {
            left += 2 * (uint64_t)value->count;
        }
    }
    return value;
}

/* "[2, ?, 3]" */
static const char *
shape_text(const int64_t *shape, int32_t ndim, char *text, size_t size)
{
    size_t length = (size_t)snprintf(text, size, "[");

    for (int32_t i = 0; i < ndim && length < size; i++) {
        const char *comma = i > 0 ? ", " : "";
        length +=
            (size_t)(shape[i] < 0 ? snprintf(text + length, size - length, "%s?", comma)
                                  : snprintf(text + length, size - length, "%s%lld",
                                             comma, (long long)shape[i]));
    }
    if (length < size) {
        snprintf(text + length, size - length, "]");
    }
    return text;
}

static int
bind_tensor(struct binding *binding, const struct paml_xla_array *array,
            const DLTensor *tensor)
{
    char expected[160], got[160];
    bool fits = tensor->ndim == array->ndim;

    if (tensor->device.device_type != kDLCPU) {
        return paml_fail(binding->err, PAML_ERR_INPUT,
                         "%s: is on a device; the xla backend takes arrays in host "
                         "memory",
                         binding->path);
    }
    if (memcmp(&tensor->dtype, &array->dtype->dlpack, sizeof(DLDataType)) != 0) {
        return paml_fail(binding->err, PAML_ERR_INPUT, "%s: expected dtype %s, got %s",
                         binding->path, array->dtype->name,
                         paml_xla_dtype_name(tensor->dtype));
    }
    for (int32_t i = 0; fits && i < array->ndim; i++) {
        fits = array->shape[i] == PAML_XLA_BATCH || array->shape[i] == tensor->shape[i];
    }
    if (!fits) {
        return paml_fail(
            binding->err, PAML_ERR_INPUT, "%s: expected shape %s, got %s",
            binding->path,
            shape_text(array->shape, array->ndim, expected, sizeof(expected)),
            shape_text(tensor->shape, tensor->ndim, got, sizeof(got)));
    }
    if (!paml_xla_array_has_batch(array)) {
        return PAML_OK;
    }
    if (binding->rows >= 0 && binding->rows != tensor->shape[0]) {
        return paml_fail(binding->err, PAML_ERR_INPUT,
                         "%s: has %lld rows, another input has %lld", binding->path,
                         (long long)tensor->shape[0], (long long)binding->rows);
    }
    binding->rows = tensor->shape[0];
    return PAML_OK;
}

static int
bind_leaf(struct binding *binding, const struct paml_xla_array *array)
{
    const struct paml_value *value = binding->values++;
    unsigned char element[16];

    binding->leaves[array - binding->bundle->inputs] = value;
    if (value->kind == PAML_TENSOR) {
        return bind_tensor(binding, array, &value->tensor);
    }
    if (array->ndim > 0 || (value->kind != PAML_BOOL && value->kind != PAML_INT &&
                            value->kind != PAML_FLOAT)) {
        return paml_fail(binding->err, PAML_ERR_INPUT, "%s: expected an array, got %s",
                         binding->path, kind_name(value->kind));
    }
    if (paml_xla_write_number(array->dtype, value, element, binding->err) != PAML_OK) {
        char message[300];
        memcpy(message, binding->err->message, sizeof(message));
        message[sizeof(message) - 1] = '\0';
        return paml_fail(binding->err, PAML_ERR_INPUT, "%s: %s", binding->path,
                         message);
    }
    return PAML_OK;
}

static int bind_node(struct binding *binding, const struct paml_xla_node **node);

/* A dict's items in the bundle's order, which is not the caller's. */
static int
bind_dict(struct binding *binding, const struct paml_xla_node **node)
{
    const struct paml_value *dict = binding->values, *next = after(dict, binding->end);
    const uint32_t count = (*node)->count;
    size_t length = strlen(binding->path);

    (*node)++;
    for (uint32_t i = 0; i < count; i++) {
        const char *key = (*node)->key;
        const struct paml_value *item = dict + 1;
        uint32_t pair = 0;

        for (; pair < dict->count; pair++, item = after(item + 1, binding->end)) {
            if (item->kind == PAML_STRING && item->string.size == strlen(key) &&
                memcmp(item->string.data, key, item->string.size) == 0) {
                break;
            }
        }
        if (pair == dict->count) {
            return paml_fail(binding->err, PAML_ERR_INPUT, "%s: has no key '%.100s'",
                             binding->path, key);
        }
        snprintf(binding->path + length, PATH_SIZE - length, "['%s']", key);
        binding->values = item + 1;
        if (bind_node(binding, node) != PAML_OK) {
            return PAML_ERR_INPUT;
        }
        binding->path[length] = '\0';
    }
    binding->values = next;
    return PAML_OK;
}

/* Matches the next value with the next node; both go on behind what they hold. */
static int
bind_node(struct binding *binding, const struct paml_xla_node **node)
{
    const struct paml_xla_node *here = *node;
    const struct paml_value *value = binding->values;
    size_t length = strlen(binding->path);

    if (value == binding->end || after(value, binding->end) == NULL) {
        return paml_fail(binding->err, PAML_ERR_INPUT, "%s: is missing", binding->path);
    }
    if (here->kind == PAML_TENSOR) {
        (*node)++;
        return bind_leaf(binding, here->array);
    }
    if (here->kind != value->kind) {
        return paml_fail(binding->err, PAML_ERR_INPUT, "%s: expected %s, got %s",
                         binding->path, kind_name(here->kind), kind_name(value->kind));
    }
    if (here->kind != PAML_NONE && here->count != value->count) {
        return paml_fail(binding->err, PAML_ERR_INPUT, "%s: expected %u items, got %u",
                         binding->path, (unsigned)here->count, (unsigned)value->count);
    }
    if (here->kind == PAML_DICT) {
        return bind_dict(binding, node);
    }
    (*node)++;
    binding->values++;
    for (uint32_t i = 0; i < here->count; i++) {
        snprintf(binding->path + length, PATH_SIZE - length, "[%u]", (unsigned)i);
        if (bind_node(binding, node) != PAML_OK) {
            return PAML_ERR_INPUT;
        }
        binding->path[length] = '\0';
    }
    return PAML_OK;
}

/* Thread: worker. GIL: not held. Locks: none. */
int
paml_xla_bind(const struct paml_xla_bundle *bundle, const struct paml_run *run,
              const struct paml_value **leaves, int64_t *rows, struct paml_error *err)
{
    struct binding binding = {.bundle = bundle,
                              .values = run->inputs,
                              .end = run->inputs + run->n_inputs,
                              .leaves = leaves,
                              .rows = -1,
                              .err = err};

    for (uint32_t i = 0; i < bundle->n_arguments; i++) {
        const struct paml_xla_node *node = bundle->arguments[i].tree;

        snprintf(binding.path, PATH_SIZE, "input '%.100s'", bundle->arguments[i].name);
        if (i < run->n_arguments && binding.values < binding.end &&
            binding.values->kind == PAML_NONE && binding.values->count == PAML_ABSENT) {
            return paml_fail(err, PAML_ERR_INPUT, "%s: is missing", binding.path);
        }
        if (bind_node(&binding, &node) != PAML_OK) {
            return err->code;
        }
    }
    if (binding.values != binding.end) {
        return paml_fail(err, PAML_ERR_INPUT, "%u inputs were given, %u are taken",
                         (unsigned)run->n_arguments, (unsigned)bundle->n_arguments);
    }
    *rows = binding.rows >= 0 ? binding.rows : 1;
    return PAML_OK;
}

/* --- numbers --- */

static int
write_integer(const struct paml_xla_dtype *dtype, int64_t number, void *to,
              struct paml_error *err)
{
    const int bits = dtype->dlpack.bits;
    const bool is_signed = dtype->dlpack.code == kDLInt;
    const int64_t least = is_signed ? INT64_MIN >> (64 - bits) : 0;
    const int64_t most = is_signed    ? INT64_MAX >> (64 - bits)
                         : bits == 64 ? INT64_MAX
                                      : ((int64_t)1 << bits) - 1;

    if (number < least || number > most) {
        return paml_fail(err, PAML_ERR_INPUT, "%lld doesn't fit %s", (long long)number,
                         dtype->name);
    }
    memcpy(to, &number, (size_t)bits / 8); /* little-endian, as XLA's platforms are */
    return PAML_OK;
}

static int
write_real(const struct paml_xla_dtype *dtype, double number, void *to,
           struct paml_error *err)
{
    float single = (float)number;
    uint32_t bits;

    if (dtype->type == PJRT_F32) {
        memcpy(to, &single, sizeof(single));
    } else if (dtype->type == PJRT_F64) {
        memcpy(to, &number, sizeof(number));
    } else if (dtype->type == PJRT_BF16) {
        memcpy(&bits, &single, sizeof(bits));
        /* To nearest, ties to even; a NaN stays one. */
        bits = single != single ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
        memcpy(to, &bits, 2);
    } else {
        return paml_fail(err, PAML_ERR_INPUT,
                         "expected an array of rank 0 and dtype %s, got a number",
                         dtype->name);
    }
    return PAML_OK;
}

/* Thread: any. */
int
paml_xla_write_number(const struct paml_xla_dtype *dtype,
                      const struct paml_value *value, void *to, struct paml_error *err)
{
    if ((dtype->dlpack.code == kDLBool) != (value->kind == PAML_BOOL)) {
        return paml_fail(err, PAML_ERR_INPUT, "expected dtype %s, got %s", dtype->name,
                         kind_name(value->kind));
    }
    if (value->kind == PAML_BOOL) {
        *(unsigned char *)to = value->integer != 0;
        return PAML_OK;
    }
    if (dtype->dlpack.code == kDLInt || dtype->dlpack.code == kDLUInt) {
        if (value->kind == PAML_FLOAT) {
            return paml_fail(err, PAML_ERR_INPUT, "expected an int, got a float");
        }
        return write_integer(dtype, value->integer, to, err);
    }
    return write_real(dtype,
                      value->kind == PAML_FLOAT ? value->real : (double)value->integer,
                      to, err);
}
