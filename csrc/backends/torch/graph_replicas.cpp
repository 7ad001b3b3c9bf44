/* What a graph that trains a replica on each of several devices has besides operators:
 * the batch's way to the devices, and the point where they wait for one another. */
#include "graph_program.h"

#include <algorithm>

#include "errors.h"

namespace pyasyncml {

/* As equal shards as can be, the larger ones first. Operands: the batch's tensors,
   which shard, of how many. What has no rows goes to everybody. */
void
GraphInstance::run_shard(const Node &node)
{
    const int64_t part = node.operands[1].value.toInt();
    const int64_t parts = node.operands[2].value.toInt();
    const std::vector<Lane *> all = lanes();
    Lane *lane = all.empty() ? nullptr : all.at((size_t)part);
    const c10::Device device = lane != nullptr ? lane->device() : device_;
    std::vector<at::Tensor> shard;
    size_t bytes = 0;
    int64_t rows = -1;

    for (const Operand &operand : node.operands[0].items) {
        at::Tensor tensor = value_of(operand).toTensor();
        if (tensor.dim() > 0) {
            const int64_t has = tensor.size(0);
            if (rows < 0) {
                rows = has;
            }
            if (has != rows || has < parts) {
                throw Failure(PAML_ERR_INPUT,
                              "batch: expected tensors of " + std::to_string(rows) +
                                  " rows, " + std::to_string(parts) +
                                  " or more; got one of " + std::to_string(has));
            }
            const int64_t size = has / parts, larger = has % parts;
            tensor = tensor.narrow(0, part * size + std::min(part, larger),
                                   size + (part < larger));
        }
        bytes += tensor.nbytes() + 256;
        shard.push_back(std::move(tensor));
    }
    if (lane != nullptr) {
        Uploads uploads(*lane, bytes);
        for (at::Tensor &tensor : shard) {
            tensor =
                tensor.device().is_cpu() ? uploads.upload(tensor) : tensor.to(device);
        }
        uploads.end();
    }
    for (size_t i = 0; i < shard.size(); i++) {
        if (node.results[i] >= 0) {
            slots_[(size_t)node.results[i]] = std::move(shard[i]);
        }
    }
}

/* A device that fails does so before the others have gone on. */
void
GraphInstance::run_barrier()
{
    std::vector<Mark> marks;

    for (const Lane *lane : lanes()) {
        marks.emplace_back(device_.type()).record(lane->compute());
    }
    for (Mark &mark : marks) {
        mark.wait();
    }
}

} // namespace pyasyncml
