/* The table of C functions: the only way in, and no exception comes out. */
#include <memory>

#include "torch_backend.h"

#include "device.h"
#include "errors.h"
#include "graph_program.h"
#include "lane.h"
#include "program.h"
#include "served.h"

using pyasyncml::Flight;
using pyasyncml::GraphProgram;
using pyasyncml::Program;
using pyasyncml::report;
using pyasyncml::ServedInstance;
using pyasyncml::ServedProgram;

extern "C" {

/* Thread: worker. GIL: not held, not taken. (Of all functions here but `devices` and
   `order`.) */
static int
torch_load(const struct paml_load_spec *spec, void **program,
           struct paml_error *err) noexcept
{
    if (spec->path == nullptr && spec->options == nullptr) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "the torch backend needs a file or a graph");
    }
    try {
        ServedProgram *made;
        if (spec->path != nullptr) {
            made = new Program(spec->path, spec->entry);
        } else {
            made = new GraphProgram(spec->options);
        }
        *program = made;
        return PAML_OK;
    } catch (...) {
        return report(err, PAML_ERR_LOAD);
    }
}

static void
torch_unload(void *program) noexcept
{
    delete static_cast<ServedProgram *>(program);
}

static const struct paml_entry *
torch_describe(void *program) noexcept
{
    return static_cast<ServedProgram *>(program)->entry();
}

static int
torch_open(void *program, DLDevice device, int threads, void **instance,
           struct paml_error *err) noexcept
{
    try {
        *instance =
            static_cast<ServedProgram *>(program)->open(device, threads).release();
        return PAML_OK;
    } catch (...) {
        return report(err, PAML_ERR_LOAD);
    }
}

static int
torch_run(void *instance, struct paml_run *run, struct paml_error *err) noexcept
{
    try {
        static_cast<ServedInstance *>(instance)->run(run);
        return PAML_OK;
    } catch (...) {
        return report(err, PAML_ERR_BACKEND);
    }
}

static uint32_t
torch_depth(void *instance) noexcept
{
    return static_cast<ServedInstance *>(instance)->depth();
}

static int
torch_submit(void *instance, struct paml_flight *flight,
             struct paml_error *err) noexcept
{
    try {
        flight->ticket =
            static_cast<ServedInstance *>(instance)->begin(flight->run).release();
        return PAML_OK;
    } catch (...) {
        return report(err, PAML_ERR_BACKEND);
    }
}

static int64_t
torch_poll(void *instance, struct paml_flight *flight) noexcept
{
    return static_cast<ServedInstance *>(instance)->ask(
        *static_cast<Flight *>(flight->ticket));
}

static int
torch_finish(void *instance, struct paml_flight *flight,
             struct paml_error *err) noexcept
{
    std::unique_ptr<Flight> begun(static_cast<Flight *>(flight->ticket));

    flight->ticket = nullptr;
    try {
        static_cast<ServedInstance *>(instance)->end(std::move(begun),
                                                     flight->run.outputs);
        return PAML_OK;
    } catch (...) {
        return report(err, PAML_ERR_BACKEND);
    }
}

/* Thread: any. GIL: either way. */
static void
torch_order(DLDevice device) noexcept
{
    try {
        pyasyncml::order_after_caller(pyasyncml::device_of(device));
    } catch (...) {
        /* A device that can't do this can't run anything either, and says so then. */
    }
}

static int
torch_download(void *instance, const DLTensor *from, void *to,
               struct paml_error *err) noexcept
{
    try {
        static_cast<ServedInstance *>(instance)->download(*from, to);
        return PAML_OK;
    } catch (...) {
        return report(err, PAML_ERR_BACKEND);
    }
}

static void
torch_close(void *instance) noexcept
{
    delete static_cast<ServedInstance *>(instance);
}

/* Thread: any. GIL: either way. */
static int
torch_devices(struct paml_device_info *infos, int capacity) noexcept
{
    try {
        return pyasyncml::list_devices(infos, capacity);
    } catch (...) {
        return 0;
    }
}

const struct paml_backend paml_torch_backend = {
    .abi_version = PAML_ABI_VERSION,
    .struct_size = sizeof(struct paml_backend),
    .name = "torch",
    .version = PAML_TORCH_VERSION,
    .load = torch_load,
    .unload = torch_unload,
    .describe = torch_describe,
    .open = torch_open,
    .run = torch_run,
    .close = torch_close,
    .devices = torch_devices,
    .computes = 1,
    .stop = nullptr,
    .depth = torch_depth,
    .submit = torch_submit,
    .poll = torch_poll,
    .finish = torch_finish,
    .order = torch_order,
    .download = torch_download,
    .crowded = nullptr,
};

} // extern "C"
