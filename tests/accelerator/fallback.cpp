/* Every other operator: the CPU's kernel, run on the current stream.
 *
 * The shapes of what comes out are known at once, as from a real device: the kernel is
 * tried on zeros of the same shapes (and what it said is kept), then the real run is
 * enqueued. It holds addresses, not tensors, so that memory that goes too early is read
 * when it is somebody else's. Meta kernels are no way to shapes: Python replaces them.
 */
#include "accelerator.h"

#include <sstream>
#include <unordered_map>
#include <unordered_set>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/enum_tag.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

namespace accelerator {
namespace {

/* A Python number among tensors has no say in the type of the result. */
void
keep_wrapped(const at::Tensor &from, const at::Tensor &to)
{
    if (from.unsafeGetTensorImpl()->is_wrapped_number()) {
        to.unsafeGetTensorImpl()->set_wrapped_number(true);
    }
}

} // namespace

at::Tensor
on_host(const at::Tensor &tensor)
{
    if (!tensor.defined() || tensor.device().type() != TYPE) {
        return tensor;
    }
    at::Tensor view =
        at::from_blob(const_cast<void *>(tensor.const_data_ptr()), tensor.sizes(),
                      tensor.strides(), tensor.options().device(c10::kCPU));
    keep_wrapped(tensor, view);
    return view;
}

void
check_read(Device &device, const at::Tensor &view)
{
    if (view.defined() && view.numel() > 0) {
        int64_t extent = 1;
        for (int64_t i = 0; i < view.dim(); i++) {
            extent += (view.size(i) - 1) * view.stride(i);
        }
        if (is_poisoned(view.const_data_ptr(),
                        (size_t)extent * (size_t)view.element_size())) {
            device.counters.poison_read++;
        }
    }
}

namespace {

using Stack = torch::jit::Stack;
using Tensors = std::vector<at::Tensor>;

/* Applies f to every tensor in a value, in lists too. */
template <typename F>
c10::IValue
map_tensors(const c10::IValue &value, const F &f)
{
    if (value.isTensor()) {
        return f(value.toTensor());
    }
    if (value.isList()) {
        const auto list = value.toList();
        const c10::TypePtr element = list.elementType();
        const bool optional = element->kind() == c10::TypeKind::OptionalType;
        if (element->kind() != c10::TypeKind::TensorType &&
            !(optional &&
              element->expectRef<c10::OptionalType>().getElementType()->kind() ==
                  c10::TypeKind::TensorType)) {
            return value;
        }
        c10::impl::GenericList mapped(element);
        mapped.reserve(list.size());
        for (const c10::IValue &item : value.toListRef()) {
            mapped.push_back(item.isTensor() ? c10::IValue(f(item.toTensor())) : item);
        }
        return mapped;
    }
    return value;
}

/* The places of the out= arguments among those of a call. */
std::vector<size_t>
places_of_out(const c10::FunctionSchema &schema, const Stack &arguments)
{
    std::vector<size_t> places;
    for (size_t i = 0; i < arguments.size(); i++) {
        if (schema.arguments()[i].is_out() && arguments[i].isTensor() &&
            arguments[i].toTensor().defined()) {
            places.push_back(i);
        }
    }
    return places;
}

/* A kernel may resize what is given as out=, even if only for a while (mse_loss), and a
   view of the device's memory has one size: it gets tensors of its own to write to. */
Tensors
fresh_out(Stack &arguments, const std::vector<size_t> &places)
{
    Tensors fresh;
    for (size_t place : places) {
        fresh.push_back(at::empty({0}, arguments[place].toTensor().options()));
        arguments[place] = fresh.back();
    }
    return fresh;
}

bool
is_written(const c10::Argument &argument)
{
    return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

/* One call, its arguments as the CPU's kernel takes them. */
struct Call {
    c10::OperatorHandle op;
    Stack arguments; /* as they came */
    Stack host;      /* device memory seen as the CPU's */
    Tensors reads;   /* of `host`, what isn't written to */
    bool writes_host = false;
    c10::Device device{TYPE};
    std::string key;

    explicit Call(const c10::OperatorHandle &of, Stack given)
        : op(of), arguments(std::move(given))
    {
        std::optional<c10::Device> first;
        for (const c10::IValue &argument : arguments) {
            map_tensors(argument, [&](const at::Tensor &tensor) {
                if (!first && tensor.defined() && tensor.device().type() == TYPE) {
                    first = tensor.device();
                }
                return tensor;
            });
            if (!first && argument.isDevice() && argument.toDevice().has_index() &&
                argument.toDevice().type() == TYPE) {
                first = argument.toDevice();
            }
        }
        device = first.value_or(c10::Device(TYPE, (c10::DeviceIndex)current_device()));
    }

    void view_on_host()
    {
        const auto &schema = op.schema().arguments();
        host.clear();
        reads.clear();
        for (size_t i = 0; i < arguments.size(); i++) {
            const bool written = is_written(schema[i]);
            host.push_back(value_on_host(arguments[i], written));
        }
    }

    c10::IValue value_on_host(const c10::IValue &value, bool written)
    {
        if (value.isDevice()) {
            return c10::Device(c10::kCPU);
        }
        return map_tensors(value, [&](const at::Tensor &tensor) {
            if (!tensor.defined()) {
                return tensor;
            }
            if (tensor.device().type() != TYPE) {
                writes_host |= written;
                /* The caller may write to it before the stream comes here. */
                if (written || tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
                    return tensor;
                }
                return tensor.clone();
            }
            TORCH_CHECK(tensor.device() == device,
                        "expected all tensors to be on one device, but found ",
                        tensor.device(), " beside ", device);
            at::Tensor view = on_host(tensor);
            if (!written) {
                reads.push_back(view);
            }
            return view;
        });
    }

    /* The call in words: what has the same gives the same shapes. */
    void describe()
    {
        std::ostringstream text;
        text << op.operator_name();
        for (const c10::IValue &value : arguments) {
            text << ';';
            bool has_tensor = false;
            map_tensors(value, [&](const at::Tensor &tensor) {
                has_tensor = true;
                if (tensor.defined()) {
                    text << 'T' << (int)tensor.scalar_type() << tensor.sizes() << '/'
                         << tensor.strides() << (int)tensor.device().type()
                         << tensor.unsafeGetTensorImpl()->is_wrapped_number();
                } else {
                    text << 'U';
                }
                return tensor;
            });
            if (value.isGenerator()) {
                text << 'G';
            } else if (!has_tensor) {
                text << value;
            }
        }
        key = text.str();
    }
};

struct Shape {
    bool defined;
    c10::ScalarType dtype;
    std::vector<int64_t> sizes, strides;
};
/* Of each thing that is returned, in lists too. */
using Shapes = std::vector<std::vector<Shape>>;

std::vector<int64_t>
contiguous(c10::IntArrayRef sizes)
{
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t i = sizes.size(); i > 1; i--) {
        strides[i - 2] = strides[i - 1] * std::max<int64_t>(sizes[i - 1], 1);
    }
    return strides;
}

Shape
shape_of(const at::Tensor &tensor)
{
    if (!tensor.defined()) {
        return {false, c10::ScalarType::Undefined, {}, {}};
    }
    Shape shape = {true, tensor.scalar_type(), tensor.sizes().vec(), {}};
    shape.strides = tensor.is_non_overlapping_and_dense() ? tensor.strides().vec()
                                                          : contiguous(tensor.sizes());
    return shape;
}

/* A try leaves the numbers that random kernels draw to the real runs, which therefore
   never come between its looking and its putting back. */
std::mutex drawing;

bool
draws(const c10::OperatorHandle &op)
{
    return op.hasTag(at::Tag::nondeterministic_seeded);
}

/* Runs below whatever the calling thread has switched on. */
void
run_on_cpu(const c10::OperatorHandle &op, Stack &stack)
{
    const at::AutoGradMode no_grad(false);
    const at::AutoDispatchBelowADInplaceOrView below;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    op.callBoxed(stack);
}

void
really_run(const c10::OperatorHandle &op, Stack &stack)
{
    std::unique_lock<std::mutex> lock(drawing, std::defer_lock);
    if (draws(op)) {
        lock.lock();
    }
    run_on_cpu(op, stack);
}

Shapes
try_on_zeros(const Call &call)
{
    Stack stack;
    std::unique_lock<std::mutex> lock(drawing, std::defer_lock);
    if (draws(call.op)) {
        lock.lock();
    }
    for (const c10::IValue &value : call.host) {
        if (value.isGenerator()) {
            stack.push_back(value.toGenerator().clone());
            continue;
        }
        stack.push_back(map_tensors(value, [](const at::Tensor &tensor) {
            if (!tensor.defined()) {
                return tensor;
            }
            at::Tensor zeros =
                at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options());
            zeros.zero_();
            keep_wrapped(tensor, zeros);
            return zeros;
        }));
    }
    fresh_out(stack, places_of_out(call.op.schema(), stack));
    /* What is drawn from where no generator is given. */
    at::Generator numbers = at::detail::getDefaultCPUGenerator();
    at::Tensor state;
    if (draws(call.op)) {
        const std::lock_guard<std::mutex> own(numbers.mutex());
        state = numbers.get_state();
    }
    run_on_cpu(call.op, stack);
    if (draws(call.op)) {
        const std::lock_guard<std::mutex> own(numbers.mutex());
        numbers.set_state(state);
    }
    Shapes shapes;
    for (const c10::IValue &value : stack) {
        shapes.emplace_back();
        map_tensors(value, [&](const at::Tensor &tensor) {
            shapes.back().push_back(shape_of(tensor));
            return tensor;
        });
    }
    return shapes;
}

/* Nothing, where only the values tell. */
std::shared_ptr<const Shapes>
shapes_of(Call &call)
{
    static std::mutex mutex;
    static auto *known =
        new std::unordered_map<std::string, std::shared_ptr<const Shapes>>();

    call.describe();
    {
        const std::lock_guard<std::mutex> lock(mutex);
        const auto found = known->find(call.key);
        if (found != known->end()) {
            return found->second;
        }
    }
    std::shared_ptr<const Shapes> shapes;
    try {
        shapes = std::make_shared<const Shapes>(try_on_zeros(call));
    } catch (const std::exception &) {
        /* Zeros may be what it can't take: the real run says. */
        return nullptr;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    known->emplace(call.key, shapes);
    return shapes;
}

bool
only_values_tell(const Call &call)
{
    for (const c10::Argument &result : call.op.schema().returns()) {
        const c10::TypePtr &type = result.type();
        const bool list = type->kind() == c10::TypeKind::ListType;
        if (!type->isSubtypeOf(*c10::TensorType::get()) &&
            !(list && type->expectRef<c10::ListType>().getElementType()->kind() ==
                          c10::TypeKind::TensorType)) {
            return true;
        }
    }
    if (call.writes_host || call.op.hasTag(at::Tag::data_dependent_output)) {
        return true;
    }
    if (call.op.schema().name() != "aten::index") {
        return call.op.hasTag(at::Tag::dynamic_output_shape);
    }
    for (const c10::IValue &index : call.arguments[1].toListRef()) {
        if (index.isTensor() && (index.toTensor().scalar_type() == at::kBool ||
                                 index.toTensor().scalar_type() == at::kByte)) {
            return true;
        }
    }
    return false;
}

/* The argument that a result is, -1 where it is a tensor of its own. */
int
argument_returned(const c10::FunctionSchema &schema, size_t result)
{
    const c10::AliasInfo *alias = schema.returns()[result].alias_info();
    if (alias == nullptr) {
        return -1;
    }
    TORCH_CHECK_NOT_IMPLEMENTED(alias->isWrite(), "the simulated accelerator has no ",
                                schema.name(), ".", schema.overload_name(),
                                ", which gives a view");
    for (size_t i = 0; i < schema.arguments().size(); i++) {
        const c10::AliasInfo *other = schema.arguments()[i].alias_info();
        if (other != nullptr && other->beforeSets() == alias->beforeSets()) {
            return (int)i;
        }
    }
    return -1;
}

at::Tensor
empty_like(const Shape &shape)
{
    if (!shape.defined) {
        return {};
    }
    return at::detail::empty_strided_generic(
        shape.sizes, shape.strides, &allocator(),
        c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), shape.dtype);
}

void
launch(const c10::OperatorHandle &op, Stack *stack)
{
    const c10::FunctionSchema &schema = op.schema();
    const size_t n_arguments = schema.arguments().size();
    Call call(op, Stack(stack->end() - (ptrdiff_t)n_arguments, stack->end()));
    torch::jit::drop(*stack, n_arguments);
    const c10::DeviceGuard guard(call.device);
    Device &device = device_at(call.device.index());
    Queue &queue = queue_of(current_stream(device.index));
    std::vector<int> returned;
    for (size_t i = 0; i < schema.returns().size(); i++) {
        returned.push_back(argument_returned(schema, i));
    }

    call.view_on_host();
    std::shared_ptr<const Shapes> shapes;
    if (!only_values_tell(call)) {
        shapes = shapes_of(call);
    }
    device.counters.kernels++;

    if (shapes == nullptr) {
        auto results = std::make_shared<Stack>();
        std::exception_ptr failed;
        queue.enqueue(KERNEL, [&] {
            for (const at::Tensor &tensor : call.reads) {
                check_read(device, tensor);
            }
            try {
                *results = call.host;
                really_run(call.op, *results);
            } catch (...) {
                failed = std::current_exception();
            }
        });
        queue.synchronize();
        if (failed) {
            std::rethrow_exception(failed);
        }
        for (size_t i = 0; i < returned.size(); i++) {
            if (returned[i] >= 0) {
                stack->push_back(call.arguments[(size_t)returned[i]]);
                continue;
            }
            stack->push_back(map_tensors((*results)[i], [&](const at::Tensor &tensor) {
                const at::Tensor made = empty_like(shape_of(tensor));
                if (tensor.defined() && tensor.numel() > 0) {
                    queue.enqueue(POISON, [to = on_host(made), from = tensor] {
                        to.copy_(from);
                    });
                }
                return made;
            }));
        }
        return;
    }

    /* What is returned of the arguments may have to grow first: out= of no elements. */
    Tensors made; /* the others, in order */
    Stack results;
    bool moved = false;
    for (size_t i = 0; i < returned.size(); i++) {
        const std::vector<Shape> &of = (*shapes)[i];
        if (returned[i] >= 0) {
            c10::IValue &same = call.arguments[(size_t)returned[i]];
            if (same.isTensor() && same.toTensor().defined() &&
                same.toTensor().sizes() != c10::IntArrayRef(of[0].sizes)) {
                const at::Tensor &tensor = same.toTensor();
                tensor.resize_(of[0].sizes);
                tensor.unsafeGetTensorImpl()->set_sizes_and_strides(of[0].sizes,
                                                                    of[0].strides);
                moved = true;
            }
            results.push_back(same);
        } else if (schema.returns()[i].type()->kind() == c10::TypeKind::ListType) {
            c10::List<at::Tensor> list;
            for (const Shape &shape : of) {
                list.push_back(empty_like(shape));
                made.push_back(list.get(list.size() - 1));
            }
            results.push_back(std::move(list));
        } else {
            results.push_back(empty_like(of[0]));
            made.push_back(results.back().toTensor());
        }
    }
    if (moved) {
        call.view_on_host();
    }
    Tensors targets;
    for (const at::Tensor &tensor : made) {
        targets.push_back(on_host(tensor));
    }
    queue.enqueue(KERNEL, [op = call.op, host = std::move(call.host),
                           reads = std::move(call.reads), targets = std::move(targets),
                           returned, &device] {
        for (const at::Tensor &tensor : reads) {
            check_read(device, tensor);
        }
        Stack values = host;
        const std::vector<size_t> out = places_of_out(op.schema(), values);
        const Tensors fresh = fresh_out(values, out);
        really_run(op, values);
        for (size_t i = 0; i < out.size(); i++) {
            host[out[i]].toTensor().copy_(fresh[i]);
        }
        size_t at = 0;
        for (size_t i = 0; i < returned.size(); i++) {
            if (returned[i] < 0) {
                map_tensors(values[i], [&](const at::Tensor &value) {
                    const at::Tensor &target = targets[at++];
                    if (target.defined() && value.defined()) {
                        target.copy_(value);
                    }
                    return value;
                });
            }
        }
    });
    for (c10::IValue &result : results) {
        stack->push_back(std::move(result));
    }
}

void
fallback(const c10::OperatorHandle &op, Stack *stack)
{
    launch(op, stack);
}

c10::OperatorHandle
operator_named(const char *name)
{
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
}

/* What `convolution` asks of a device that brings its own. */
void
convolution(const c10::OperatorHandle &, Stack *stack)
{
    static const c10::OperatorHandle op = operator_named("aten::convolution");
    launch(op, stack);
}

void
convolution_backward(const c10::OperatorHandle &, Stack *stack)
{
    static const c10::OperatorHandle op = operator_named("aten::convolution_backward");
    /* One argument more: the bias's sizes, after grad_output, input and weight. */
    const size_t transposed = stack->size() - 4;
    const auto weight = stack->at(stack->size() - 8).toTensor();
    const int64_t out = (*stack)[transposed].toBool()
                            ? weight.size(1) * stack->at(stack->size() - 2).toInt()
                            : weight.size(0);
    stack->insert(stack->end() - 7, c10::IValue(std::vector<int64_t>{out}));
    launch(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m)
{
    m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m)
{
    m.impl("convolution_overrideable",
           torch::CppFunction::makeFromBoxedFunction<&convolution>());
    m.impl("convolution_backward_overrideable",
           torch::CppFunction::makeFromBoxedFunction<&convolution_backward>());
    /* In one piece, as on the CPU, rather than made of others. */
    for (const char *name : {"native_layer_norm", "native_layer_norm_backward"}) {
        m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
    }
}

} // namespace
} // namespace accelerator
