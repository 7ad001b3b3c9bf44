#include "graph_program.h"

#include <ATen/ScalarOps.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "clock.h"
#include "errors.h"
#include "outputs.h"

namespace pyasyncml {

std::unique_ptr<ServedInstance>
GraphProgram::open(DLDevice device, int threads)
{
    return std::make_unique<GraphInstance>(options_, device, threads);
}

GraphInstance::GraphInstance(const GraphOptions &options, DLDevice device, int threads)
    : ServedInstance(device, threads), graph_(*options.graph),
      elsewhere_(device_.type() != graph_.home.type()), slots_(graph_.n_slots)
{
    std::vector<at::Tensor> constants = options.weights->on(device_);
    for (size_t i = 0; i < constants.size(); i++) {
        if (graph_.constants[i].written && !constants[i].is_inference()) {
            written_.push_back(constants[i]);
        }
        slots_[i] = std::move(constants[i]);
    }
    versions_.resize(written_.size());
    if (graph_.compiled != nullptr) {
        loader_ = &graph_.compiled->loader_for(device_);
    }
    if (lane_ != nullptr) {
        lane_->follow_default_stream(); /* where constants were copied */
        for (const c10::Device &beside : graph_.beside) {
            add_lane(beside);
        }
    }
}

c10::IValue
GraphInstance::list_of(const Operand &operand)
{
    c10::impl::GenericList list(operand.type);
    list.reserve(operand.items.size());
    for (const Operand &item : operand.items) {
        list.push_back(value_of(item));
    }
    return list;
}

c10::IValue
GraphInstance::value_of(const Operand &operand)
{
    switch (operand.kind) {
    case Operand::Kind::Constant:
        return operand.value;
    case Operand::Kind::Slot:
        return slots_[(size_t)operand.slot];
    case Operand::Kind::Last:
        return std::move(slots_[(size_t)operand.slot]);
    case Operand::Kind::Tensor: {
        const c10::IValue &number = slots_[(size_t)operand.slot];
        if (number.isTensor()) {
            return number;
        }
        at::Tensor wrapped = at::scalar_to_tensor(number.toScalar());
        wrapped.unsafeGetTensorImpl()->set_wrapped_number(true);
        return wrapped;
    }
    case Operand::Kind::Double: {
        const c10::IValue &number = slots_[(size_t)operand.slot];
        return number.isNone() ? number : c10::IValue(number.toScalar().toDouble());
    }
    case Operand::Kind::List:
        return list_of(operand);
    case Operand::Kind::Device:
        return device_;
    }
    return {};
}

void
GraphInstance::run_call(const Node &node)
{
    stack_.clear();
    for (const Operand &operand : node.operands) {
        stack_.push_back(value_of(operand));
    }
    (elsewhere_ && node.op_elsewhere ? node.op_elsewhere : node.op)->callBoxed(&stack_);
    for (size_t i = 0; i < node.results.size(); i++) {
        if (node.results[i] >= 0) {
            slots_[(size_t)node.results[i]] = std::move(stack_[i]);
        }
    }
    stack_.clear();
}

void
GraphInstance::run_package(const Node &node)
{
    std::vector<at::Tensor> inputs;
    inputs.reserve(node.operands.size());
    for (const Operand &operand : node.operands) {
        inputs.push_back(value_of(operand).toTensor());
    }
    void *stream = lane_ != nullptr ? lane_->compute().native_handle() : nullptr;
    std::vector<at::Tensor> outputs = run_compiled(*loader_, std::move(inputs), stream);
    if (outputs.size() < node.results.size()) {
        throw Failure(PAML_ERR_BACKEND, "the compiled program gave " +
                                            std::to_string(outputs.size()) +
                                            " outputs, not what it says");
    }
    for (size_t i = 0; i < node.results.size(); i++) {
        if (node.results[i] >= 0) {
            slots_[(size_t)node.results[i]] = std::move(outputs[i]);
        }
    }
}

/* What a body gives, after it ran. */
void
GraphInstance::take_results(const Body &body, std::vector<c10::IValue> &values)
{
    values.clear();
    for (const Operand &operand : body.results) {
        values.push_back(value_of(operand));
    }
}

void
GraphInstance::run_control_flow(const Node &node)
{
    std::vector<c10::IValue> values, given;
    const auto fill = [&](const Body &body, std::vector<c10::IValue> from) {
        for (size_t i = 0; i < body.inputs.size(); i++) {
            if (body.inputs[i] >= 0) {
                slots_[(size_t)body.inputs[i]] = std::move(from.at(i));
            }
        }
    };

    for (const Operand &operand : node.operands) {
        given.push_back(value_of(operand));
    }
    if (node.kind == NodeKind::Cond) {
        const bool chosen = given.at(0).isTensor() ? given[0].toTensor().item().toBool()
                                                   : given[0].toScalar().toBool();
        const Body &body = graph_.bodies[node.bodies[chosen ? 0 : 1]];
        given.erase(given.begin());
        fill(body, std::move(given));
        run_body(body);
        take_results(body, values);
    } else {
        const Body &condition = graph_.bodies[node.bodies[0]];
        const Body &step = graph_.bodies[node.bodies[1]];
        for (;;) {
            fill(condition, given);
            run_body(condition);
            take_results(condition, values);
            const c10::IValue &go_on = values.at(0);
            if (!(go_on.isTensor() ? go_on.toTensor().item().toBool()
                                   : go_on.toScalar().toBool())) {
                break;
            }
            fill(step, given);
            run_body(step);
            take_results(step, values);
            /* The rest of what is given stays as it is. */
            std::move(values.begin(), values.end(), given.begin());
        }
        values = std::move(given);
    }
    for (size_t i = 0; i < node.results.size(); i++) {
        if (node.results[i] >= 0) {
            slots_[(size_t)node.results[i]] = std::move(values.at(i));
        }
    }
}

void
GraphInstance::run_node(const Node &node)
{
    switch (node.kind) {
    case NodeKind::Call:
        run_call(node);
        return;
    case NodeKind::SymSize: /* the most frequent of them */
        if (node.operands[0].kind == Operand::Kind::Slot && node.results[0] >= 0) {
            const at::Tensor &tensor = slots_[(size_t)node.operands[0].slot].toTensor();
            slots_[(size_t)node.results[0]] =
                tensor.size(node.operands[1].value.toInt());
            return;
        }
        break;
    case NodeKind::Cond:
    case NodeKind::WhileLoop:
        run_control_flow(node);
        return;
    case NodeKind::Compiled:
        run_package(node);
        return;
    case NodeKind::Shard:
        run_shard(node);
        return;
    case NodeKind::Barrier:
        run_barrier();
        return;
    default:
        break;
    }
    std::vector<c10::IValue> arguments;
    arguments.reserve(node.operands.size());
    for (const Operand &operand : node.operands) {
        arguments.push_back(value_of(operand));
    }
    c10::IValue result = compute_number(node.kind, arguments);
    if (!node.results.empty() && node.results[0] >= 0) {
        slots_[(size_t)node.results[0]] = std::move(result);
    }
}

void
GraphInstance::run_body(const Body &body)
{
    const Node *at = nullptr;

    try {
        for (const Node &node : body.nodes) {
            at = &node;
            run_node(node);
            if (!written_.empty()) { /* it trains: see clock.h */
                paml_make_way(&made_way_ns_, paml_now_ns());
            }
        }
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const c10::OutOfMemoryError &) {
        throw;
    } catch (const Failure &failure) {
        if (!at->bodies.empty() || at->kind == NodeKind::Assert ||
            at->kind == NodeKind::Shard) {
            throw; /* says where already */
        }
        throw Failure(failure.code, failure.what() + (" (" + at->place + ")"));
    } catch (...) {
        const std::string message = first_line(current_message());
        /* Not a Failure: report() tells memory errors from others by their words. */
        throw std::runtime_error(message + " (" + at->place + ")");
    }
}

c10::IValue
GraphInstance::result_of(const Tree &tree, std::vector<c10::IValue> &leaves)
{
    switch (tree.kind) {
    case PAML_NONE:
        return leaves[tree.leaf];
    case PAML_DICT: {
        c10::impl::GenericDict dict(tree.keys.empty() || tree.keys[0].isString()
                                        ? c10::TypePtr(c10::StringType::get())
                                        : c10::TypePtr(c10::IntType::get()),
                                    c10::AnyType::get());
        dict.reserve(tree.items.size());
        for (size_t i = 0; i < tree.items.size(); i++) {
            dict.insert(tree.keys[i], result_of(tree.items[i], leaves));
        }
        return dict;
    }
    case PAML_LIST: {
        c10::impl::GenericList list(c10::AnyType::get());
        for (const Tree &item : tree.items) {
            list.push_back(result_of(item, leaves));
        }
        return list;
    }
    default: {
        std::vector<c10::IValue> items;
        items.reserve(tree.items.size());
        for (const Tree &item : tree.items) {
            items.push_back(result_of(item, leaves));
        }
        return c10::ivalue::Tuple::create(std::move(items));
    }
    }
}

/* Runs the graph. Whatever happens, nothing refers to the inputs afterwards. */
c10::IValue
GraphInstance::call(const struct paml_run &run, std::optional<c10::Device> *came_on)
{
    struct Forget {
        GraphInstance &instance;
        ~Forget()
        {
            instance.stack_.clear();
            instance.slots_.resize(instance.graph_.constants.size());
            instance.slots_.resize(instance.graph_.n_slots);
        }
    } forget = {*this};

    *came_on = read_inputs(run);
    /* Where others write to what we share, and where a batch that stayed was made. */
    if (lane_ != nullptr && graph_.shares_state &&
        (*came_on != device_ || !graph_.beside.empty())) {
        for (Lane *lane : lanes()) {
            lane->follow_default_stream();
        }
    }
    /* Fused optimizers write without counting: Python's check for stale graphs would
       stay silent. */
    struct CountVersions {
        GraphInstance &instance;
        explicit CountVersions(GraphInstance &of) : instance(of)
        {
            for (size_t i = 0; i < instance.written_.size(); i++) {
                instance.versions_[i] = (uint32_t)instance.written_[i]._version();
            }
        }
        ~CountVersions()
        {
            for (size_t i = 0; i < instance.written_.size(); i++) {
                const at::Tensor &tensor = instance.written_[i];
                if ((uint32_t)tensor._version() == instance.versions_[i]) {
                    tensor.unsafeGetTensorImpl()->bump_version();
                }
            }
        }
    };

    const CountVersions count(*this);
    const Body &program = graph_.bodies[0];
    run_body(program);
    std::vector<c10::IValue> leaves;
    take_results(program, leaves);
    return result_of(graph_.output, leaves);
}

void
GraphInstance::execute(const struct paml_run &run, struct paml_outputs *outputs)
{
    /* The same kernels as eager code takes in inference mode, bit by bit, at less than
       its cost. The autograd keys are left out, but not those that count the versions
       of what is written to. */
    const at::AutoGradMode no_grad(false);
    const at::AutoDispatchBelowAutograd below_autograd;

    struct GiveBack {
        GraphInstance &instance;
        ~GiveBack()
        {
            instance.borrowed_.give_back();
        }
    } give_back = {*this};

    std::optional<c10::Device> came_on;
    c10::IValue result = call(run, &came_on);
    if (graph_.shares_state) {
        came_on.reset(); /* the losses of steps are read where they are noted */
    }
    write_outputs(std::move(result), outputs, lane_.get(), came_on);
}

} // namespace pyasyncml
