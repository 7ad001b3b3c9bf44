#include "graph.h"

#include <functional>
#include <unordered_set>

#include <ATen/DLConvertor.h>
#include <ATen/ops/empty.h>

#include "errors.h"
#include "inputs.h"

namespace pyasyncml {
namespace {

void
for_each_slot(const std::vector<Operand> &operands,
              const std::function<void(int32_t)> &visit)
{
    for (const Operand &operand : operands) {
        if (operand.slot >= 0) {
            visit(operand.slot);
        }
        for_each_slot(operand.items, visit);
    }
}

/* What a slot's tensor may share its memory with: constants and inputs, by slot. */
using Roots = std::vector<std::unordered_set<int32_t>>;

/* Batch norm in training mode writes to its running statistics, and the schemas of some
   of its forms don't say so. */
bool
writes_unsaid(const Node &node, const c10::FunctionSchema &schema, size_t argument)
{
    const std::string &name = schema.arguments()[argument].name();
    if (name != "running_mean" && name != "running_var") {
        return false;
    }
    for (size_t i = 0; i < schema.arguments().size(); i++) {
        const std::string &flag = schema.arguments()[i].name();
        if (flag == "training" || flag == "use_input_stats") {
            return !node.operands[i].value.isBool() || node.operands[i].value.toBool();
        }
    }
    return false;
}

bool
is_unannotated_composite(const c10::OperatorHandle &op)
{
    /* dropout outside training gives its input back, and its schema doesn't say so. */
    return op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
}

} // namespace

void
Graph::find_writes()
{
    Roots roots(n_slots);
    std::unordered_set<int32_t> input_slots;

    for (size_t i = 0; i < constants.size(); i++) {
        roots[i].insert((int32_t)i);
    }
    for (const InputLeaf &leaf : leaves) {
        if (leaf.slot >= 0) {
            roots[(size_t)leaf.slot].insert(leaf.slot);
            input_slots.insert(leaf.slot);
        }
    }
    const auto write = [&](int32_t slot) {
        for (const int32_t root : roots[(size_t)slot]) {
            if ((size_t)root < constants.size()) {
                constants[(size_t)root].written = true;
            } else if (input_slots.count(root)) {
                writes_inputs = true;
            }
        }
    };
    const auto pass_on = [&](const std::vector<Operand> &from,
                             const std::vector<int32_t> &to) {
        for_each_slot(from, [&](int32_t slot) {
            for (const int32_t result : to) {
                if (result >= 0) {
                    roots[(size_t)result].insert(roots[(size_t)slot].begin(),
                                                 roots[(size_t)slot].end());
                }
            }
        });
    };
    const std::function<void(const Body &)> visit = [&](const Body &body) {
        for (const Node &node : body.nodes) {
            for (const uint32_t inner : node.bodies) {
                pass_on(node.operands, bodies[inner].inputs);
                visit(bodies[inner]);
            }
            if (node.kind == NodeKind::GetItem || node.kind == NodeKind::Shard ||
                !node.bodies.empty()) {
                pass_on(node.operands, node.results);
            }
            if (node.kind != NodeKind::Call) {
                continue;
            }
            const c10::FunctionSchema &schema = node.op->schema();
            const bool composite = is_unannotated_composite(*node.op);
            for (size_t i = 0; i < node.operands.size(); i++) {
                const std::vector<Operand> operand(1, node.operands[i]);
                const c10::AliasInfo *alias = schema.arguments()[i].alias_info();
                if ((alias != nullptr && alias->isWrite()) ||
                    writes_unsaid(node, schema, i)) {
                    for_each_slot(operand, write);
                }
                if (alias != nullptr || composite) {
                    pass_on(operand, node.results);
                }
            }
        }
    };
    visit(bodies[0]);
}

/* Marks the last use of every value of a body, and results that nobody uses. */
void
Graph::find_last_uses(Body &body)
{
    std::vector<bool> used(n_slots);
    const std::function<void(std::vector<Operand> &)> mark =
        [&](std::vector<Operand> &operands) {
            for (auto operand = operands.rbegin(); operand != operands.rend();
                 ++operand) {
                mark(operand->items);
                if (operand->slot < (int32_t)constants.size()) {
                    continue;
                }
                if (!used[(size_t)operand->slot] &&
                    operand->kind == Operand::Kind::Slot) {
                    operand->kind = Operand::Kind::Last;
                }
                used[(size_t)operand->slot] = true;
            }
        };

    mark(body.results);
    for (auto node = body.nodes.rbegin(); node != body.nodes.rend(); ++node) {
        for (int32_t &result : node->results) {
            if (result >= 0 && !used[(size_t)result]) {
                result = -1;
            }
        }
        mark(node->operands);
    }
    for (int32_t &input : body.inputs) {
        input = input >= 0 && used[(size_t)input] ? input : -1;
    }
    if (&body == &bodies[0]) {
        for (InputLeaf &leaf : leaves) {
            leaf.slot = leaf.slot >= 0 && used[(size_t)leaf.slot] ? leaf.slot : -1;
        }
    }
}

void
Graph::describe()
{
    bool stateful = false;

    for (const InputArgument &argument : arguments) {
        struct paml_spec spec = {};
        spec.name = argument.name.c_str();
        spec.type = argument.type.c_str();
        spec.ndim = -1;
        spec.batch_axis = -1;
        spec.optional = argument.optional;
        if (argument.tree.kind == PAML_NONE) {
            const InputLeaf &leaf = leaves[argument.tree.leaf];
            switch (leaf.kind) {
            case InputLeaf::Kind::Tensor:
                spec.kinds = PAML_KIND_BIT(PAML_TENSOR);
                spec.dtype = at::getDLDataType(at::empty({0}, leaf.dtype));
                spec.ndim = (int32_t)leaf.sizes.size();
                spec.shape = argument.shape.data();
                spec.batch_axis =
                    !leaf.sizes.empty() && leaf.sizes[0].symbol >= 0 ? 0 : -1;
                break;
            case InputLeaf::Kind::Number:
                spec.kinds = kinds_of(*leaf.argument.type);
                break;
            case InputLeaf::Kind::Fixed:
                spec.kinds = PAML_KIND_ANY;
                break;
            }
        } else if (argument.tree.kind == PAML_DICT) {
            spec.kinds = PAML_KIND_BIT(PAML_DICT);
        } else {
            spec.kinds = PAML_KIND_BIT(PAML_TUPLE) | PAML_KIND_BIT(PAML_LIST);
        }
        inputs_.push_back(spec);
    }
    for (const GraphConstant &constant : constants) {
        stateful |= constant.written;
    }
    for (const OutputLeaf &leaf : output_leaves) {
        struct paml_spec spec = {};
        spec.name = leaf.name.empty() ? nullptr : leaf.name.c_str();
        spec.kinds = PAML_KIND_ANY;
        spec.ndim = -1;
        spec.batch_axis = -1;
        if (leaf.dtype != c10::ScalarType::Undefined) {
            spec.kinds = PAML_KIND_BIT(PAML_TENSOR);
            spec.dtype = at::getDLDataType(at::empty({0}, leaf.dtype));
            spec.ndim = (int32_t)leaf.shape.size();
            spec.shape = leaf.shape.data();
        }
        outputs_.push_back(spec);
    }
    entry_.name = name.c_str();
    entry_.n_inputs = (uint32_t)inputs_.size();
    entry_.inputs = inputs_.data();
    entry_.n_outputs = (uint32_t)outputs_.size();
    entry_.outputs = outputs_.data();
    entry_.stateful = stateful;
}

void
Graph::finish()
{
    find_writes();
    for (Body &body : bodies) {
        find_last_uses(body);
    }
    describe();
}

/* A tensor of its own over the same memory, so that workers that share weights don't
   share the reference counts that every call counts up and down. */
static at::Tensor
alias_of(const at::Tensor &tensor, bool requires_grad)
{
    at::Tensor alias = tensor.detach();
    /* The choice of some kernels depends on it (matmul's folding). */
    if (requires_grad && !alias.is_inference()) {
        alias.set_requires_grad(true);
    }
    return alias;
}

GraphWeights::GraphWeights(const Graph &graph) : graph_(graph)
{
    for (const GraphConstant &constant : graph.constants) {
        tensors_.push_back(constant.tensor);
    }
}

GraphWeights::GraphWeights(const Graph &graph, std::vector<at::Tensor> tensors)
    : graph_(graph), tensors_(std::move(tensors))
{
    bool same = tensors_.size() == graph.constants.size();

    for (size_t i = 0; same && i < tensors_.size(); i++) {
        const at::Tensor &was = graph.constants[i].tensor;
        same = tensors_[i].sizes() == was.sizes() &&
               tensors_[i].dtype() == was.dtype() &&
               tensors_[i].strides() == was.strides() &&
               tensors_[i].device() == was.device();
    }
    if (!same) {
        throw Failure(PAML_ERR_LOAD, "other weights than the graph was made for");
    }
}

std::vector<at::Tensor>
GraphWeights::on(c10::Device device)
{
    const std::lock_guard<std::mutex> lock(copies_lock_);
    const c10::Device home = graph_.home;
    std::vector<at::Tensor> tensors;
    std::vector<at::Tensor> *moved = nullptr;

    if (device != home && !(device.is_cpu() && home.is_cpu())) {
        moved = &copies_[{device.type(), device.index()}];
        if (moved->empty()) {
            const at::NoGradGuard no_grad;
            for (const at::Tensor &tensor : tensors_) {
                moved->push_back(tensor.device() == home ? tensor.detach().to(device)
                                                         : tensor);
            }
        }
    }
    for (size_t i = 0; i < tensors_.size(); i++) {
        const GraphConstant &constant = graph_.constants[i];
        const at::Tensor &source = moved != nullptr ? (*moved)[i] : tensors_[i];
        if (constant.written && !graph_.shares_state) {
            const at::NoGradGuard no_grad;
            tensors.push_back(source.detach().clone());
        } else {
            tensors.push_back(alias_of(source, constant.requires_grad));
        }
    }
    return tensors;
}

} // namespace pyasyncml
