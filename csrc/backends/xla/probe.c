#include "probe.h"

#include "buffers.h"

/* Thread: worker. Locks: the latch's. */
bool
paml_xla_device_works(struct pjrt_device *device, struct paml_xla_latch *latch)
{
    static const float sent[1];
    const struct paml_xla_array array = {.dtype = paml_xla_dtype_find("float32")};
    struct pjrt_buffer *buffer = NULL;
    struct paml_error error, late;
    float received[1];
    int code, waited;

    if (paml_xla_latch_reserve(latch, 2) < 0) {
        return true; /* nobody knows */
    }
    code = paml_xla_buffer_new(&array, sent, 0, false, device, latch, &buffer, &error);
    if (code == PAML_OK) {
        code = paml_xla_buffer_fetch(buffer, &array, 0, received, latch, &error);
        paml_xla_buffer_destroy(buffer);
    }
    waited = paml_xla_latch_wait(latch, &late);
    code = code != PAML_OK ? code : waited;
    return code == PAML_OK || code == PAML_ERR_MEMORY;
}
