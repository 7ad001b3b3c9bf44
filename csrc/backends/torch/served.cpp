#include "served.h"

#include <cstring>
#include <new>

#include <c10/core/StreamGuard.h>

#include "device.h"
#include "errors.h"
#include "outputs.h"

namespace pyasyncml {

Flight::Flight(c10::DeviceType type) : done(type), outputs()
{
    outputs.values = outputs.first;
    outputs.capacity = PAML_INLINE_VALUES;
}

Flight::~Flight()
{
    discard(&outputs);
    if (outputs.values != outputs.first) {
        free(outputs.values);
    }
}

ServedInstance::ServedInstance(DLDevice device, int threads)
    : device_(require_device(device)), threads_(threads)
{
    if (threads_ > 0) {
        use_threads(threads_);
    }
    if (!device_.is_cpu()) {
        lane_ = std::make_unique<Lane>(device_);
    }
}

void
ServedInstance::run(struct paml_run *run)
{
    if (lane_ != nullptr) {
        end(begin(*run), run->outputs);
        return;
    }
    if (threads_ > 0) {
        use_threads(threads_);
    }
    execute(*run, run->outputs);
}

std::unique_ptr<Flight>
ServedInstance::begin(const struct paml_run &run)
{
    auto flight = std::make_unique<Flight>(device_.type());
    const c10::StreamGuard on_compute(lane_->compute());

    if (threads_ > 0) {
        use_threads(threads_);
    }
    try {
        execute(run, &flight->outputs);
    } catch (...) {
        flight->error = std::current_exception();
    }
    flight->uploaded = lane_->take_uploaded();
    /* Also when it failed: the device may still be reading what the caller is about to
       free. */
    try {
        flight->done.record(lane_->compute());
    } catch (...) {
        flight->of_device = true;
        if (!flight->error) {
            flight->error = std::current_exception();
        }
    }
    return flight;
}

int64_t
ServedInstance::ask(Flight &flight) noexcept
{
    try {
        return flight.done.ask();
    } catch (...) {
        flight.of_device = true;
        if (!flight.error) {
            flight.error = std::current_exception();
        }
        return 0;
    }
}

void
ServedInstance::end(std::unique_ptr<Flight> flight, struct paml_outputs *outputs)
{
    const c10::StreamGuard on_compute(lane_->compute());

    try {
        flight->done.wait();
    } catch (...) {
        flight->of_device = true;
        if (!flight->error) {
            flight->error = std::current_exception();
        }
    }
    lane_->let_go(flight->uploaded);
    /* A device that can still do nothing well has had a failure of the program's; one
       that can't will never again. */
    if (flight->of_device && !lane_->drain()) {
        try {
            std::rethrow_exception(flight->error);
        } catch (...) {
            throw Failure(PAML_ERR_DEVICE, "device " + device_.str() + " was lost: " +
                                               first_line(current_message()));
        }
    }
    if (flight->error) {
        std::rethrow_exception(flight->error);
    }
    struct paml_value *values = paml_outputs_append(outputs, flight->outputs.count);
    if (values == nullptr) {
        throw std::bad_alloc();
    }
    memcpy(values, flight->outputs.values, flight->outputs.count * sizeof(*values));
    flight->outputs.count = 0;
}

} // namespace pyasyncml
