#include "inputs.h"

#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include <ATen/DLConvertor.h>
#include <ATen/ScalarOps.h>
#include <ATen/core/jit_type.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>

#include "device.h"
#include "errors.h"

namespace pyasyncml {
namespace {

constexpr uint32_t
bits()
{
    return 0;
}

template <typename... Kinds>
constexpr uint32_t
bits(int kind, Kinds... kinds)
{
    return PAML_KIND_BIT(kind) | bits(kinds...);
}

const char *
kind_words(uint32_t kind)
{
    switch (kind) {
    case PAML_NONE:
        return "None";
    case PAML_TENSOR:
        return "a tensor";
    case PAML_BOOL:
        return "a bool";
    case PAML_INT:
        return "an int";
    case PAML_FLOAT:
        return "a float";
    case PAML_STRING:
        return "a str";
    case PAML_BYTES:
        return "bytes";
    case PAML_TUPLE:
        return "a tuple";
    case PAML_LIST:
        return "a list";
    case PAML_DICT:
        return "a dict";
    default:
        return "an object";
    }
}

/* Copies element by element what torch has no tensor for: memory that is walked
   backwards, elements off their alignment. */
void
copy_elements(const DLTensor &from, const int64_t *strides, size_t itemsize, char *to)
{
    const int rank = from.ndim;
    int64_t index[PAML_MAX_RANK] = {};
    const char *at = (const char *)from.data + from.byte_offset;
    int axis;

    do {
        memcpy(to, at, itemsize);
        to += itemsize;
        for (axis = rank - 1; axis >= 0; axis--) {
            at += strides[axis] * (int64_t)itemsize;
            if (++index[axis] < from.shape[axis]) {
                break;
            }
            at -= strides[axis] * (int64_t)itemsize * from.shape[axis];
            index[axis] = 0;
        }
    } while (axis >= 0);
}

bool
any_negative(c10::IntArrayRef strides)
{
    for (const int64_t stride : strides) {
        if (stride < 0) {
            return true;
        }
    }
    return false;
}

std::optional<c10::ScalarType>
dtype_of(DLDataType dtype)
{
    try {
        return at::toScalarType(dtype);
    } catch (const c10::Error &) {
        return std::nullopt;
    }
}

/* What a tensor takes of a staging buffer, about. */
size_t
staged_bytes(const DLTensor &tensor)
{
    size_t bytes = (size_t)tensor.dtype.bits * tensor.dtype.lanes / 8;
    for (int32_t axis = 0; axis < tensor.ndim; axis++) {
        bytes *= (size_t)tensor.shape[axis];
    }
    return bytes + 256;
}

at::Tensor
gather(const DLTensor &from, c10::ScalarType dtype)
{
    const c10::IntArrayRef sizes(from.shape, (size_t)from.ndim);
    const at::Tensor copy = at::empty(sizes, at::TensorOptions(dtype));
    int64_t contiguous[PAML_MAX_RANK];

    if (copy.numel() > 0) {
        const int64_t *strides = from.strides;
        if (strides == nullptr) {
            memcpy(contiguous, copy.strides().data(), sizes.size() * sizeof(int64_t));
            strides = contiguous;
        }
        copy_elements(from, strides, copy.element_size(), (char *)copy.data_ptr());
    }
    return copy;
}

} // namespace

uint32_t
kinds_of(const c10::Type &type)
{
    switch (type.kind()) {
    case c10::TypeKind::TensorType:
        return bits(PAML_TENSOR, PAML_BOOL, PAML_INT, PAML_FLOAT);
    case c10::TypeKind::NoneType:
        return bits(PAML_NONE);
    case c10::TypeKind::BoolType:
        return bits(PAML_BOOL, PAML_TENSOR);
    case c10::TypeKind::IntType:
        return bits(PAML_INT, PAML_BOOL, PAML_TENSOR);
    case c10::TypeKind::FloatType:
    case c10::TypeKind::NumberType:
        return bits(PAML_FLOAT, PAML_INT, PAML_BOOL, PAML_TENSOR);
    case c10::TypeKind::StringType:
    case c10::TypeKind::DeviceObjType:
        return bits(PAML_STRING);
    case c10::TypeKind::ListType:
    case c10::TypeKind::TupleType:
        return bits(PAML_LIST, PAML_TUPLE);
    case c10::TypeKind::DictType:
        return bits(PAML_DICT);
    case c10::TypeKind::OptionalType:
        return bits(PAML_NONE) |
               kinds_of(*type.expectRef<c10::OptionalType>().getElementType());
    case c10::TypeKind::UnionType: {
        uint32_t kinds = 0;
        for (const c10::TypePtr &member :
             type.expectRef<c10::UnionType>().containedTypes()) {
            kinds |= kinds_of(*member);
        }
        return kinds;
    }
    case c10::TypeKind::AnyType:
        return bits(PAML_NONE, PAML_TENSOR, PAML_BOOL, PAML_INT, PAML_FLOAT,
                    PAML_STRING, PAML_TUPLE, PAML_LIST, PAML_DICT);
    default:
        return 0;
    }
}

uint32_t
kinds_of_result(const c10::Type &type)
{
    switch (type.kind()) {
    case c10::TypeKind::TensorType:
    case c10::TypeKind::ComplexType:
        return bits(PAML_TENSOR);
    case c10::TypeKind::BoolType:
        return bits(PAML_BOOL);
    case c10::TypeKind::IntType:
        return bits(PAML_INT);
    case c10::TypeKind::FloatType:
        return bits(PAML_FLOAT);
    case c10::TypeKind::ListType:
        return bits(PAML_LIST);
    case c10::TypeKind::TupleType:
        return bits(PAML_TUPLE);
    case c10::TypeKind::OptionalType:
        return bits(PAML_NONE) |
               kinds_of_result(*type.expectRef<c10::OptionalType>().getElementType());
    default:
        return kinds_of(type);
    }
}

bool
Borrowed::give_back() noexcept
{
    bool whole = true;

    for (at::Tensor &view : views_) {
        /* One reference is ours: view's tensor holds its storage. */
        if (view.use_count() == 1 && view.storage().use_count() == 1) {
            continue;
        }
        const c10::Storage &storage = view.storage();
        try {
            const c10::InferenceMode inference;
            const auto options = at::TensorOptions(at::kByte).device(view.device());
            const int64_t size = (int64_t)storage.nbytes();
            const at::Tensor copy = at::empty({size}, options);
            copy.copy_(at::for_blob(storage.mutable_data(), {size})
                           .options(options)
                           .target_device(view.device())
                           .make_tensor());
            const c10::Storage &fresh = copy.storage();
            storage.set_data_ptr_noswap(fresh.set_data_ptr({nullptr, view.device()}));
        } catch (...) {
            whole = false;
        }
    }
    views_.clear();
    return whole;
}

/* The way to a value, for messages: x, x[1], x["a"][0]. Lives on the stack. */
struct InputReader::Where {
    const Where *parent;
    std::string_view name; /* of the argument, or a key */
    size_t index;
    const Argument *argument; /* at the top */

    std::string path() const
    {
        if (parent == nullptr) {
            return std::string(name);
        }
        if (name.data() != nullptr) {
            return parent->path() + "[\"" + std::string(name) + "\"]";
        }
        return parent->path() + "[" + std::to_string(index) + "]";
    }

    const Argument &top() const
    {
        return parent == nullptr ? *argument : parent->top();
    }

    [[noreturn]] void refuse(const std::string &got, const std::string &wanted) const
    {
        const Argument &argument = top();
        std::string text = "argument '" + argument.name + "'";
        if (parent == nullptr) {
            text += " takes " + wanted;
        } else {
            text += " takes " + argument.type_name + ", so " + path() + " must be " +
                    wanted;
        }
        throw Failure(PAML_ERR_INPUT, text + "; it is " + got);
    }
};

InputReader::InputReader(const struct paml_run &run, std::optional<c10::Device> device,
                         bool copy, Borrowed &borrowed, Lane *lane)
    : at_(run.inputs), end_(run.inputs + run.n_inputs), device_(device), copy_(copy),
      borrowed_(borrowed), lane_(lane)
{
}

std::optional<c10::Device>
InputReader::end()
{
    if (uploads_) {
        uploads_->end();
    }
    return came_on_;
}

const struct paml_value &
InputReader::next()
{
    if (at_ == end_) {
        throw Failure(PAML_ERR_INPUT, "the inputs end inside a structure");
    }
    return *at_++;
}

c10::IValue
InputReader::read(const Argument &argument)
{
    const Where where = {nullptr, argument.name, 0, &argument};
    const bool absent =
        at_ == end_ || (at_->kind == PAML_NONE && at_->count == PAML_ABSENT);

    if (!absent) {
        return convert(next(), argument.type, where);
    }
    if (at_ != end_) {
        at_++;
    }
    if (!argument.default_value) {
        throw Failure(PAML_ERR_INPUT, "argument '" + argument.name + "' (" +
                                          argument.type_name + ") is missing");
    }
    return *argument.default_value;
}

c10::IValue
InputReader::read_part(const Argument &argument)
{
    return convert(next(), argument.type, {nullptr, argument.name, 0, &argument});
}

c10::IValue
InputReader::convert(const struct paml_value &value, const c10::TypePtr &type,
                     const Where &where)
{
    switch (type->kind()) {
    case c10::TypeKind::TensorType:
        return tensor(value, where);
    case c10::TypeKind::OptionalType:
        if (value.kind == PAML_NONE) {
            return {};
        }
        return convert(value, type->expectRef<c10::OptionalType>().getElementType(),
                       where);
    case c10::TypeKind::ListType:
        return list(value, type, where);
    case c10::TypeKind::DictType:
        return dict(value, type, where);
    case c10::TypeKind::TupleType:
        return tuple(value, type, where);
    case c10::TypeKind::UnionType:
        /* A number is a number first, and a tensor only where nothing else fits. */
        for (const auto kinds : {kinds_of_result, kinds_of}) {
            for (const c10::TypePtr &member :
                 type->expectRef<c10::UnionType>().containedTypes()) {
                if (kinds(*member) & PAML_KIND_BIT(value.kind)) {
                    return convert(value, member, where);
                }
            }
        }
        break;
    case c10::TypeKind::AnyType:
        return convert_any(value, where);
    default:
        return scalar(value, type, where);
    }
    where.refuse(kind_words(value.kind), type->annotation_str());
}

c10::IValue
InputReader::scalar(const struct paml_value &value, const c10::TypePtr &type,
                    const Where &where)
{
    const uint32_t kind = value.kind;
    const bool integer = kind == PAML_INT || kind == PAML_BOOL;

    /* A NumPy scalar travels as a tensor of no dimensions. */
    if (kind == PAML_TENSOR && (kinds_of(*type) & PAML_KIND_BIT(PAML_TENSOR)) &&
        value.tensor.ndim == 0) {
        const c10::Scalar item = tensor(value, where).item();
        struct paml_value plain = {};
        if (item.isBoolean()) {
            plain.kind = PAML_BOOL;
            plain.integer = item.toBool();
        } else if (item.isIntegral(/*includeBool=*/false)) {
            plain.kind = PAML_INT;
            plain.integer = item.toLong();
        } else if (item.isFloatingPoint()) {
            plain.kind = PAML_FLOAT;
            plain.real = item.toDouble();
        } else {
            where.refuse("a complex tensor", type->annotation_str());
        }
        return scalar(plain, type, where);
    }
    switch (type->kind()) {
    case c10::TypeKind::NoneType:
        if (kind == PAML_NONE) {
            return {};
        }
        break;
    case c10::TypeKind::BoolType:
        if (kind == PAML_BOOL) {
            return value.integer != 0;
        }
        break;
    case c10::TypeKind::IntType:
        if (integer) {
            return value.integer;
        }
        break;
    case c10::TypeKind::FloatType:
        if (integer || kind == PAML_FLOAT) {
            return kind == PAML_FLOAT ? value.real : (double)value.integer;
        }
        break;
    case c10::TypeKind::NumberType:
        if (kind == PAML_BOOL) {
            return value.integer != 0;
        }
        if (kind == PAML_INT) {
            return value.integer;
        }
        if (kind == PAML_FLOAT) {
            return value.real;
        }
        break;
    case c10::TypeKind::StringType:
        if (kind == PAML_STRING) {
            return std::string(value.string.data, value.string.size);
        }
        break;
    case c10::TypeKind::DeviceObjType:
        if (kind == PAML_STRING) {
            return c10::Device(std::string(value.string.data, value.string.size));
        }
        break;
    default:
        break;
    }
    where.refuse(kind_words(kind), type->annotation_str());
}

c10::IValue
InputReader::list(const struct paml_value &value, const c10::TypePtr &type,
                  const Where &where)
{
    if (value.kind != PAML_LIST && value.kind != PAML_TUPLE) {
        where.refuse(kind_words(value.kind), type->annotation_str());
    }
    const c10::TypePtr &element = type->expectRef<c10::ListType>().getElementType();
    c10::impl::GenericList items(element);
    items.reserve(value.count);
    for (uint32_t i = 0; i < value.count; i++) {
        items.push_back(convert(next(), element, {&where, {}, i, nullptr}));
    }
    return items;
}

c10::IValue
InputReader::dict(const struct paml_value &value, const c10::TypePtr &type,
                  const Where &where)
{
    if (value.kind != PAML_DICT) {
        where.refuse(kind_words(value.kind), type->annotation_str());
    }
    const auto &dict_type = type->expectRef<c10::DictType>();
    c10::impl::GenericDict items(dict_type.getKeyType(), dict_type.getValueType());
    items.reserve(value.count);
    for (uint32_t i = 0; i < value.count; i++) {
        const struct paml_value &name = next();
        Where inner = {&where, {}, i, nullptr};
        if (name.kind == PAML_STRING) {
            inner.name = std::string_view(name.string.data, name.string.size);
        }
        c10::IValue key = convert(name, dict_type.getKeyType(), inner);
        items.insert_or_assign(std::move(key),
                               convert(next(), dict_type.getValueType(), inner));
    }
    return items;
}

c10::IValue
InputReader::tuple(const struct paml_value &value, const c10::TypePtr &type,
                   const Where &where)
{
    const c10::ArrayRef<c10::TypePtr> elements =
        type->expectRef<c10::TupleType>().elements();
    if (value.kind != PAML_TUPLE && value.kind != PAML_LIST) {
        where.refuse(kind_words(value.kind), type->annotation_str());
    }
    if (value.count != elements.size()) {
        where.refuse("a tuple of " + std::to_string(value.count),
                     type->annotation_str());
    }
    std::vector<c10::IValue> items;
    items.reserve(value.count);
    for (uint32_t i = 0; i < value.count; i++) {
        items.push_back(convert(next(), elements[i], {&where, {}, i, nullptr}));
    }
    return c10::ivalue::Tuple::createNamed(std::move(items),
                                           type->cast<c10::TupleType>());
}

/* An argument of type Any: what torch.jit makes of the same Python object. */
c10::IValue
InputReader::convert_any(const struct paml_value &value, const Where &where)
{
    switch (value.kind) {
    case PAML_NONE:
        return {};
    case PAML_TENSOR:
        return tensor(value, where);
    case PAML_BOOL:
        return value.integer != 0;
    case PAML_INT:
        return value.integer;
    case PAML_FLOAT:
        return value.real;
    case PAML_STRING:
        return std::string(value.string.data, value.string.size);
    case PAML_TUPLE:
    case PAML_LIST: {
        std::vector<c10::IValue> items;
        items.reserve(value.count);
        for (uint32_t i = 0; i < value.count; i++) {
            items.push_back(convert_any(next(), {&where, {}, i, nullptr}));
        }
        if (value.kind == PAML_TUPLE) {
            return c10::ivalue::Tuple::create(std::move(items));
        }
        c10::TypePtr element = c10::AnyType::get();
        if (!items.empty()) {
            element = items[0].type();
            for (const c10::IValue &item : items) {
                if (*item.type() != *element) {
                    element = c10::AnyType::get();
                    break;
                }
            }
        }
        c10::impl::GenericList list(element);
        for (c10::IValue &item : items) {
            list.push_back(std::move(item));
        }
        return list;
    }
    case PAML_DICT: {
        if (value.count > 0 && at_ != end_ && at_->kind != PAML_STRING) {
            where.refuse("a dict with a key that is " +
                             std::string(kind_words(at_->kind)),
                         "a dict with str keys");
        }
        return dict(value,
                    c10::DictType::create(c10::StringType::get(), c10::AnyType::get()),
                    where);
    }
    default:
        where.refuse(kind_words(value.kind), "Any value that TorchScript has");
    }
}

at::Tensor
InputReader::upload(const at::Tensor &host)
{
    if (!uploads_) {
        size_t bytes = host.nbytes();
        for (const struct paml_value *value = at_; value != end_; value++) {
            if (value->kind == PAML_TENSOR &&
                value->tensor.device.device_type == kDLCPU) {
                bytes += staged_bytes(value->tensor);
            }
        }
        uploads_.emplace(*lane_, bytes);
    }
    return uploads_->upload(host);
}

at::Tensor
InputReader::tensor(const struct paml_value &value, const Where &where)
{
    if (value.kind == PAML_BOOL || value.kind == PAML_INT || value.kind == PAML_FLOAT) {
        const c10::Scalar number = value.kind == PAML_FLOAT ? c10::Scalar(value.real)
                                   : value.kind == PAML_INT
                                       ? c10::Scalar(value.integer)
                                       : c10::Scalar(value.integer != 0);
        at::Tensor wrapped = at::scalar_to_tensor(number);
        wrapped.unsafeGetTensorImpl()->set_wrapped_number(true);
        return wrapped;
    }
    if (value.kind != PAML_TENSOR) {
        where.refuse(kind_words(value.kind), "Tensor");
    }

    const DLTensor &from = value.tensor;
    const std::optional<c10::ScalarType> known = dtype_of(from.dtype);
    if (!known) {
        where.refuse("a tensor of an element type that torch does not have", "Tensor");
    }
    const c10::ScalarType dtype = *known;
    const size_t itemsize = c10::elementSize(dtype);
    const size_t alignment = c10::isComplexType(dtype) ? itemsize / 2 : itemsize;
    const c10::IntArrayRef sizes(from.shape, (size_t)from.ndim);
    char *data = (char *)from.data + from.byte_offset;
    const bool host = device_of(from.device).is_cpu();

    if (host && (((uintptr_t)data % alignment) != 0 ||
                 (from.strides != nullptr &&
                  any_negative({from.strides, (size_t)from.ndim})))) {
        const at::Tensor copy = gather(from, dtype);
        return lane_ != nullptr ? upload(copy) : copy;
    }
    const c10::Device device = host ? c10::Device(c10::kCPU) : device_of(from.device);
    auto maker = at::for_blob(data, sizes);
    if (from.strides != nullptr) {
        maker.strides(c10::IntArrayRef(from.strides, (size_t)from.ndim));
    }
    const at::Tensor view = maker.options(at::TensorOptions(dtype).device(device))
                                .target_device(device)
                                .make_tensor();
    if (lane_ != nullptr && host) {
        return upload(view);
    }
    if (!device.is_cpu() && !came_on_) {
        came_on_ = device;
    }
    if (device_ && device != *device_) {
        return lane_ != nullptr ? lane_->fetch(view) : view.to(*device_);
    }
    if (lane_ != nullptr && !followed_) {
        followed_ = true;
        lane_->follow_default_stream(); /* where it was made */
    }
    if (copy_) {
        return view.clone();
    }
    borrowed_.add(view);
    return view;
}

} // namespace pyasyncml
