/* What a TensorFlow session is configured with, byte by byte: the expected bytes are
 * ConfigProto.SerializeToString()'s, of TensorFlow 2.21.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "run_tests.h"

static void
check(DLDevice device, int threads, const void *expected, size_t expected_size)
{
    uint8_t bytes[PAML_TF_CONFIG_MOST];
    size_t size = paml_tf_config(device, threads, bytes);

    if (size != expected_size || memcmp(bytes, expected, size) != 0) {
        fprintf(stderr, "device %d:%d, %d threads: got", (int)device.device_type,
                (int)device.device_id, threads);
        for (size_t i = 0; i < size; i++) {
            fprintf(stderr, " %02x", bytes[i]);
        }
        fprintf(stderr, "\n");
        exit(1);
    }
}

/* intra_op_parallelism_threads, inter_op_parallelism_threads -1 */
#define THREADS(intra) "\x10" intra "\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"

/* device_count {"GPU": 0} */
static void
on_the_cpu_a_session_takes_no_gpu(void)
{
    static const char one[] = "\x0a\x07\x0a\x03GPU\x10\x00" THREADS("\x01");
    static const char many[] = "\x0a\x07\x0a\x03GPU\x10\x00" THREADS("\x80\x01");

    check((DLDevice){kDLCPU, 0}, 1, one, sizeof(one) - 1);
    check((DLDevice){kDLCPU, 1}, 128, many, sizeof(many) - 1);
}

/* gpu_options {allow_growth, visible_device_list}, allow_soft_placement */
static void
on_a_gpu_a_session_sees_that_one_and_takes_memory_as_it_needs_it(void)
{
    static const char zero[] = THREADS("\x02") "\x32\x05\x20\x01\x2a\x01"
                                               "0\x38\x01";
    static const char twelve[] = THREADS("\x02") "\x32\x06\x20\x01\x2a\x02"
                                                 "12\x38\x01";

    check((DLDevice){kDLCUDA, 0}, 2, zero, sizeof(zero) - 1);
    check((DLDevice){kDLCUDA, 12}, 2, twelve, sizeof(twelve) - 1);
}

static void
the_largest_numbers_there_are_fit(void)
{
    uint8_t bytes[PAML_TF_CONFIG_MOST + 1];
    DLDevice device = {kDLCUDA, INT32_MIN};

    bytes[PAML_TF_CONFIG_MOST] = 0x55;
    if (paml_tf_config(device, -1, bytes) > PAML_TF_CONFIG_MOST ||
        bytes[PAML_TF_CONFIG_MOST] != 0x55) {
        fprintf(stderr, "PAML_TF_CONFIG_MOST is too small\n");
        exit(1);
    }
}

int
main(void)
{
    static const struct test tests[] = {
        TEST(on_the_cpu_a_session_takes_no_gpu),
        TEST(on_a_gpu_a_session_sees_that_one_and_takes_memory_as_it_needs_it),
        TEST(the_largest_numbers_there_are_fit),
    };

    return run_tests(tests, sizeof(tests) / sizeof(tests[0]), NULL);
}
