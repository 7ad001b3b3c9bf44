#include "served.h"

#include <algorithm>
#include <cstring>
#include <new>

#include <ATen/DLConvertor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/StreamGuard.h>

#include "device.h"
#include "errors.h"
#include "outputs.h"

namespace pyasyncml {

Flight::Flight() : outputs()
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

void
Flight::fail_on_device()
{
    of_device = true;
    if (!error) {
        error = std::current_exception();
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
ServedInstance::add_lane(c10::Device device)
{
    beside_.push_back(std::make_unique<Lane>(require_device(dlpack_of(device))));
    beside_streams_.push_back(beside_.back()->compute());
    beside_.back()->follow_default_stream();
}

std::vector<Lane *>
ServedInstance::lanes() const
{
    std::vector<Lane *> lanes;

    if (lane_ != nullptr) {
        lanes.push_back(lane_.get());
    }
    for (const std::unique_ptr<Lane> &lane : beside_) {
        lanes.push_back(lane.get());
    }
    return lanes;
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
    auto flight = std::make_unique<Flight>();
    const c10::MultiStreamGuard on_others(beside_streams_);
    const c10::StreamGuard on_compute(lane_->compute());

    if (threads_ > 0) {
        use_threads(threads_);
    }
    try {
        execute(run, &flight->outputs);
    } catch (...) {
        flight->error = std::current_exception();
    }
    for (Lane *lane : lanes()) {
        flight->legs.emplace_back(device_.type());
        flight->legs.back().uploaded = lane->take_uploaded();
        /* Also when it failed: the device may still be reading what the caller is about
           to free. */
        try {
            flight->legs.back().done.record(lane->compute());
        } catch (...) {
            flight->fail_on_device();
        }
    }
    return flight;
}

int64_t
ServedInstance::ask(Flight &flight) noexcept
{
    int64_t pause = 0;

    for (Flight::Leg &leg : flight.legs) {
        try {
            pause = std::max(pause, leg.done.ask());
        } catch (...) {
            flight.fail_on_device();
        }
    }
    return pause;
}

void
ServedInstance::end(std::unique_ptr<Flight> flight, struct paml_outputs *outputs)
{
    const c10::MultiStreamGuard on_others(beside_streams_);
    const c10::StreamGuard on_compute(lane_->compute());
    const std::vector<Lane *> all = lanes();

    for (size_t i = 0; i < all.size(); i++) {
        try {
            flight->legs[i].done.wait();
        } catch (...) {
            flight->fail_on_device();
        }
        all[i]->let_go(flight->legs[i].uploaded);
    }
    /* A device that can still do nothing well has had a failure of the program's; one
       that can't will never again. */
    for (Lane *lane : all) {
        if (flight->of_device && !lane->drain()) {
            try {
                std::rethrow_exception(flight->error);
            } catch (...) {
                throw Failure(PAML_ERR_DEVICE,
                              "device " + lane->device().str() +
                                  " was lost: " + first_line(current_message()));
            }
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

void
ServedInstance::download(const DLTensor &result, void *to) const
{
    const c10::IntArrayRef sizes(result.shape, (size_t)result.ndim);
    const auto options = at::TensorOptions(at::toScalarType(result.dtype));
    auto maker = at::for_blob((char *)result.data + result.byte_offset, sizes);
    const c10::Device device = device_of(result.device);
    c10::OptionalStreamGuard on_copies;

    if (result.strides != nullptr) {
        maker.strides(c10::IntArrayRef(result.strides, (size_t)result.ndim));
    }
    if (lane_ != nullptr && lane_->device() == device) {
        on_copies.reset_stream(lane_->copies()); /* not after the runs since */
    }
    at::from_blob(to, sizes, options)
        .copy_(
            maker.options(options.device(device)).target_device(device).make_tensor());
}

} // namespace pyasyncml
