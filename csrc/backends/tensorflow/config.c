#include "config.h"

#include <stdio.h>
#include <string.h>

/* Numbers of fields, from TensorFlow's config.proto. */
enum { DEVICE_COUNT = 1, INTRA_OP_THREADS = 2, INTER_OP_THREADS = 5 };
enum { GPU_OPTIONS = 6, SOFT_PLACEMENT = 7 };
enum { GPU_ALLOW_GROWTH = 4, GPU_VISIBLE_DEVICES = 5 };

static uint8_t *
put_varint(uint8_t *at, uint64_t number)
{
    for (; number >= 0x80; number >>= 7) {
        *at++ = (uint8_t)(number | 0x80);
    }
    *at++ = (uint8_t)number;
    return at;
}

static uint8_t *
put_number(uint8_t *at, int field, int64_t number)
{
    return put_varint(put_varint(at, (uint64_t)field << 3), (uint64_t)number);
}

static uint8_t *
put_bytes(uint8_t *at, int field, const void *bytes, size_t size)
{
    at = put_varint(put_varint(at, (uint64_t)field << 3 | 2), size);
    memcpy(at, bytes, size);
    return at + size;
}

size_t
paml_tf_config(DLDevice device, int threads, uint8_t *bytes)
{
    static const char no_gpu[] = "\x0a\x03GPU\x10"; /* {"GPU": 0}, and its zero */
    uint8_t *at = bytes, gpu[PAML_TF_CONFIG_MOST / 2], *gpu_at = gpu;
    char number[16];

    if (device.device_type == kDLCPU) {
        at = put_bytes(at, DEVICE_COUNT, no_gpu, sizeof(no_gpu));
    }
    at = put_number(at, INTRA_OP_THREADS, threads);
    /* Less than nothing: operations run in the thread that calls the session. Not with
       use_per_session_threads: TensorFlow then runs loops and some more in a pool of
       the session's. (The intra-op threads are the session's own: see library.c.) */
    at = put_number(at, INTER_OP_THREADS, -1);
    if (device.device_type != kDLCPU) {
        /* This one of those that the process sees, which becomes the session's GPU:0.
           Memory as it is needed, not all there is; and operations that have no kernel
           for the device run on the CPU. */
        snprintf(number, sizeof(number), "%d", (int)device.device_id);
        gpu_at = put_number(gpu_at, GPU_ALLOW_GROWTH, 1);
        gpu_at = put_bytes(gpu_at, GPU_VISIBLE_DEVICES, number, strlen(number));
        at = put_bytes(at, GPU_OPTIONS, gpu, (size_t)(gpu_at - gpu));
        at = put_number(at, SOFT_PLACEMENT, 1);
    }
    return (size_t)(at - bytes);
}
