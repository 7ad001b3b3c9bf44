#include "source.h"

/* Thread: worker. GIL: not held. Locks: none. */
int
paml_xla_source_program(struct paml_xla_source *source,
                        const struct paml_load_spec *spec,
                        struct paml_xla_program **program, struct paml_error *err)
{
    int code;

    *program = source != NULL
                   ? atomic_load_explicit(&source->program, memory_order_acquire)
                   : NULL;
    if (*program != NULL) {
        code = paml_xla_usable(err);
        if (code == PAML_OK) {
            code = paml_xla_program_check(*program, spec, err);
        }
        if (code == PAML_OK) {
            paml_xla_program_ref(*program);
        }
        return code;
    }
    code = paml_xla_program_load(spec, program, err);
    if (code == PAML_OK && source != NULL) {
        paml_xla_program_ref(*program);
        atomic_store_explicit(&source->program, *program, memory_order_release);
    }
    return code;
}

/* Thread: worker. Locks: none. */
int
paml_xla_source_array(const struct paml_xla_arrays *arrays,
                      const struct paml_xla_bundle *bundle, const char *folder,
                      uint32_t index, const struct paml_xla_array *array,
                      const void **data, struct paml_error *err)
{
    const size_t expected = paml_xla_array_bytes(array, 0);
    const unsigned char *member;
    size_t size;
    int code;

    if (arrays->items != NULL) {
        if (index >= arrays->count || arrays->items[index].size != expected) {
            return paml_fail(err, PAML_ERR_LOAD,
                             "array %u of the %s isn't the bundle's: expected %zu "
                             "bytes, got %zu",
                             (unsigned)index, folder, expected,
                             index < arrays->count ? arrays->items[index].size : 0);
        }
        *data = arrays->items[index].data;
        return PAML_OK;
    }
    code = paml_xla_bundle_member(bundle, folder, index, &member, &size, err);
    if (code == PAML_OK && size != expected) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "the bundle is damaged: %s/%u has %zu bytes", folder,
                         (unsigned)index, size);
    }
    *data = member;
    return code;
}
