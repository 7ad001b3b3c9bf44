/* c10::IValue -> struct paml_value: what a run gives back. */
#ifndef PAML_TORCH_OUTPUTS_H
#define PAML_TORCH_OUTPUTS_H

#include <optional>

#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>

#include "backend.h"
#include "lane.h"

namespace pyasyncml {

/* Fills `outputs` with one structure. Every tensor in it belongs to the caller alone: a
 * tensor whose memory is an input, a weight, a constant or anything else that outlives
 * the run is copied. Two results that are views of one result stay views of it.
 *
 * `lane` is the accelerator's, or NULL on the CPU. There everything is only enqueued:
 * the results are complete when what its computing stream has been given has ended.
 * `to`: the accelerator that the run's own results go to; nothing: all tensors come
 * back in host memory.
 *
 * Precondition: `result` holds the only references that the run has left behind (its
 * stack is empty), since ownership is read off the reference counts. Throws; what was
 * written is released then. */
void write_outputs(c10::IValue result, struct paml_outputs *outputs, Lane *lane,
                   std::optional<c10::Device> to);

/* Releases all of it. */
void discard(struct paml_outputs *outputs);

} // namespace pyasyncml
#endif
