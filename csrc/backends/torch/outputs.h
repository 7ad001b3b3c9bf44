/* c10::IValue -> struct paml_value: what a run gives back. */
#ifndef PAML_TORCH_OUTPUTS_H
#define PAML_TORCH_OUTPUTS_H

#include <ATen/core/ivalue.h>

#include "backend.h"
#include "device.h"

namespace pyasyncml {

/* Fills `outputs` with one structure. Every tensor in it belongs to the caller alone: a
 * tensor whose memory is an input, a weight, a constant or anything else that outlives
 * the run is copied. Two results that are views of one result stay views of it.
 *
 * `queue` is the accelerator's, or NULL on the CPU; with `to_host` tensors come back in
 * host memory, otherwise they stay on the device, complete.
 *
 * Precondition: `result` holds the only references that the run has left behind (its
 * stack is empty), since ownership is read off the reference counts. Throws; what was
 * written is released then. */
void write_outputs(c10::IValue result, struct paml_outputs *outputs, Queue *queue,
                   bool to_host);

/* Runs `call(&saw_device)`, which says whether inputs came on the device and returns
 * the result, waits for the device, and writes the result out. Also when the call
 * throws: the device may still be reading inputs that the caller is about to free. */
template <typename Call>
void
run_and_write(struct paml_run *run, Queue *queue, Call &&call)
{
    bool saw_device = false;
    c10::IValue result;

    try {
        result = call(&saw_device);
    } catch (...) {
        if (queue != nullptr) {
            queue->wait();
        }
        throw;
    }
    if (queue != nullptr) {
        queue->wait();
    }
    write_outputs(std::move(result), run->outputs, queue, !saw_device);
}

} // namespace pyasyncml
#endif
