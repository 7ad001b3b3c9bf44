/* What goes into a run and comes out of it: tensors, scalars, strings, and tuples,
 * lists and dicts of them.
 *
 * A structure is an array of values in prefix order: a container holds the number of
 * its items in `count` and its items follow it, each of them whole. A dict with two
 * entries is {DICT 2} key value key value. So `f(x, {"a": y})` travels as
 *     TENSOR x | DICT 1 | STRING "a" | TENSOR y
 * and no pointer needs to be followed to copy, count or compare a structure.
 *
 * Ownership: `owner` keeps the bytes (and shape and strides) alive, `release(owner)`
 * gives it up; both are NULL where nothing is owned. Inputs are released by the Python
 * side only, with the GIL held, on the thread of the loop that submitted them: the
 * last drop of a torch tensor may need the GIL. A backend never releases an input.
 * Outputs must be droppable on any thread, with or without the GIL.
 */
#ifndef PAML_VALUE_H
#define PAML_VALUE_H

#include <stddef.h>
#include <stdint.h>

/* The torch shim compiles against torch's own copy of the same header. */
#ifdef PAML_USE_ATEN_DLPACK
#include <ATen/dlpack.h>
#else
#include <dlpack/dlpack.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define PAML_MAX_RANK 64

/* A device_type for the devices of an XLA plugin; DLPack has none. */
#define PAML_DEVICE_XLA 240

/* Part of the backend ABI: append only. */
enum paml_kind {
    PAML_NONE = 0,
    PAML_TENSOR,
    PAML_BOOL,   /* integer: 0 or 1 */
    PAML_INT,    /* integer */
    PAML_FLOAT,  /* real */
    PAML_STRING, /* string, not terminated; UTF-8 */
    PAML_BYTES,  /* string, any bytes */
    PAML_TUPLE,  /* count items follow */
    PAML_LIST,   /* count items follow */
    PAML_DICT,   /* count pairs follow: key, value, key, value, … */
    PAML_OBJECT, /* object: opaque to the engine; the python backend's */
};

#define PAML_KIND_BIT(kind) (1u << (kind))
#define PAML_KIND_ANY 0xffffffffu

struct paml_value {
    uint32_t kind;  /* enum paml_kind */
    uint32_t count; /* containers: items, or pairs for a dict */
    union {
        /* strides are in elements, as DLPack has them; NULL means C-contiguous.
           byte_offset is honoured. */
        DLTensor tensor;
        int64_t integer;
        double real;
        struct {
            const char *data;
            size_t size; /* bytes */
        } string;
        void *object;
    };
    void *owner;
    void (*release)(void *owner);
};

/* A tensor of strings is a PAML_TENSOR whose elements are these, with a dtype of our
   own (codes that DLPack doesn't use, 128 bits, one lane). So it is gathered, cut, and
   padded with empty strings as any other tensor is; only a copy that outlives `owner`,
   which keeps the bytes alive besides the elements, must copy them too
   (paml_tensor_clone). Not terminated; `data` may be NULL where `size` is 0. */
struct paml_string {
    const char *data;
    size_t size; /* bytes */
};

#define PAML_CODE_TEXT 0xf0  /* UTF-8; str in Python */
#define PAML_CODE_BYTES 0xf1 /* any bytes; bytes in Python */

static inline int
paml_dtype_is_strings(DLDataType dtype)
{
    return dtype.code == PAML_CODE_TEXT || dtype.code == PAML_CODE_BYTES;
}

/* A growing array of output values in prefix order. `first` serves the common case
   without an allocation. Owner: the op. */
#define PAML_INLINE_VALUES 2

struct paml_outputs {
    struct paml_value *values; /* first, or from malloc() */
    uint32_t count, capacity;
    struct paml_value first[PAML_INLINE_VALUES];
};

void paml_value_release(struct paml_value *value);
size_t paml_value_nbytes(const struct paml_value *value);
int64_t paml_tensor_elements(const DLTensor *tensor);
/* What it holds; the bytes of strings included. */
size_t paml_tensor_nbytes(const DLTensor *tensor);
size_t paml_dtype_bytes(DLDataType dtype, int64_t elements);
int paml_tensor_is_contiguous(const DLTensor *tensor);
const char *paml_kind_name(int kind);
/* "float32", "bool", "bfloat16", "int4x2"…, written to text. */
const char *paml_dtype_name(DLDataType dtype, char *text, size_t size);
/* "cpu", "cuda:0", …, written to text. */
const char *paml_device_name(DLDevice device, char *text, size_t size);

/* A new C-contiguous tensor, 64-byte aligned, zero references outside `value`;
   contents undefined. Returns 0, or -1 when memory ran out. */
int paml_tensor_new(struct paml_value *value, DLDataType dtype, int32_t ndim,
                    const int64_t *shape);
/* The same for a C-contiguous copy of a CPU tensor, which needs nothing of `from`. */
int paml_tensor_clone(const DLTensor *from, struct paml_value *to);
/* Copies between CPU tensors of one shape and dtype, each with strides of its own;
   elements are whole bytes. */
void paml_tensor_copy(const DLTensor *from, const DLTensor *to);
/* Copies a strided CPU tensor into C-contiguous memory at `to`. */
void paml_tensor_gather(const DLTensor *from, void *to);

void paml_outputs_init(struct paml_outputs *outputs);
void paml_outputs_clear(struct paml_outputs *outputs); /* releases, then init */
/* `to` takes everything, whatever it held; `from` is left empty. */
void paml_outputs_move(struct paml_outputs *from, struct paml_outputs *to);

#ifdef __cplusplus
}
#endif
#endif
