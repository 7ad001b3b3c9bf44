/* What becomes of the state that a run gives: a session keeps it in host memory.
 *
 * Each test is a sentence about behaviour. A failed check names its line and ends the
 * program with status 1.
 */
#include "engine_helpers.h"

#include "session.h"
#include "run_tests.h"

/* A device's memory, which the engine can't read: it is no address at all. */
#define ON_DEVICE ((void *)(uintptr_t)0x1000)
#define CELLS 3

static int64_t shape[] = {CELLS};
static int downloads, released;

static void
release(void *owner)
{
    (void)owner;
    released++;
}

static int
download(void *instance, const DLTensor *from, void *to, struct paml_error *err)
{
    CHECK(instance == &downloads);
    CHECK(from->data == ON_DEVICE && from->ndim == 1 && from->shape[0] == CELLS);
    if (++downloads > 1) {
        return paml_fail(err, PAML_ERR_BACKEND, "lost on the way");
    }
    for (int i = 0; i < CELLS; i++) {
        ((float *)to)[i] = (float)(10 + i);
    }
    return PAML_OK;
}

static const struct paml_backend on_host = {
    .abi_version = PAML_ABI_VERSION,
    .struct_size = sizeof(struct paml_backend),
};
static const struct paml_backend on_devices = {
    .abi_version = PAML_ABI_VERSION,
    .struct_size = sizeof(struct paml_backend),
    .download = download,
};

static struct paml_value
tensor_at(void *data, DLDeviceType type)
{
    struct paml_value value = {.kind = PAML_TENSOR, .release = release};

    value.tensor.data = data;
    value.tensor.device = (DLDevice){type, 0};
    value.tensor.dtype = (DLDataType){kDLFloat, 32, 1};
    value.tensor.ndim = 1;
    value.tensor.shape = shape;
    return value;
}

static struct paml_session *
session_new(void)
{
    float zeros[CELLS] = {0};
    struct paml_value initial = tensor_at(zeros, kDLCPU);
    const uint32_t argument = 1;
    const char *name = "state";
    struct paml_session *session = paml_session_new(1, &argument, &name, &initial);

    CHECK(session != NULL);
    downloads = released = 0;
    return session;
}

/* A result and a new state, both on the device. */
static void
fill(struct paml_outputs *outputs)
{
    struct paml_value *values;

    paml_outputs_init(outputs);
    values = paml_outputs_append(outputs, 3);
    CHECK(values != NULL);
    values[0] = (struct paml_value){.kind = PAML_TUPLE, .count = 2};
    values[1] = values[2] = tensor_at(ON_DEVICE, kDLCUDA);
}

/* --- tests --- */

static void
state_that_a_device_gives_is_kept_in_host_memory(void)
{
    struct paml_session *session = session_new();
    struct paml_outputs outputs;
    struct paml_error err;

    fill(&outputs);
    CHECK(paml_session_absorb(session, &outputs, &on_devices, &downloads, &err) ==
          PAML_OK);
    CHECK(downloads == 1 && released == 1);
    CHECK(session->state[0].tensor.device.device_type == kDLCPU);
    CHECK(((float *)session->state[0].tensor.data)[2] == 12);
    /* The result stays where it is. */
    CHECK(outputs.count == 1 && outputs.values[0].tensor.data == ON_DEVICE);
    paml_outputs_clear(&outputs);
    paml_session_unref(session);
    CHECK(released == 2);
}

static void
state_that_does_not_come_back_leaves_the_last_one(void)
{
    struct paml_session *session = session_new();
    struct paml_outputs outputs;
    struct paml_error err;

    fill(&outputs);
    CHECK(paml_session_absorb(session, &outputs, &on_devices, &downloads, &err) ==
          PAML_OK);
    paml_outputs_clear(&outputs);
    fill(&outputs);
    CHECK(paml_session_absorb(session, &outputs, &on_devices, &downloads, &err) ==
          PAML_ERR_BACKEND);
    CHECK(strcmp(err.message, "lost on the way") == 0);
    CHECK(((float *)session->state[0].tensor.data)[2] == 12);
    paml_outputs_clear(&outputs);

    fill(&outputs);
    CHECK(paml_session_absorb(session, &outputs, &on_host, NULL, &err) ==
          PAML_ERR_BACKEND);
    CHECK(strstr(err.message, "the model gave it on a device") != NULL);
    paml_outputs_clear(&outputs);
    paml_session_unref(session);
    CHECK(released == 6);
}

int
main(void)
{
    static const struct test tests[] = {
        TEST(state_that_a_device_gives_is_kept_in_host_memory),
        TEST(state_that_does_not_come_back_leaves_the_last_one),
    };

    return run_tests(tests, sizeof(tests) / sizeof(tests[0]), NULL);
}
