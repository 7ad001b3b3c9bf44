#include "outputs.h"

#include <new>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include <ATen/DLConvertor.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <ATen/ops/scalar_tensor.h>

#include "device.h"
#include "errors.h"

namespace pyasyncml {
namespace {

/* Thread: any. GIL: not needed: the tensors were made here, Python never saw them. */
void
release_tensor(void *owner)
{
    c10::raw::intrusive_ptr::decref(static_cast<c10::TensorImpl *>(owner));
}

void
release_string(void *owner)
{
    c10::raw::intrusive_ptr::decref(static_cast<c10::ivalue::ConstantString *>(owner));
}

/* How often the result refers to each tensor, how many of its tensors lie in each
   storage, and which storages are therefore the result's alone. */
struct Census {
    std::unordered_map<c10::TensorImpl *, size_t> tensors;
    std::unordered_map<const c10::StorageImpl *, size_t> storages;
    std::unordered_set<const c10::StorageImpl *> lent;

    /* After the counting, before anything is handed out. An input that comes back is
       one of the result's tensors, too: it is known by who else refers to it. */
    void close()
    {
        for (const auto &[tensor, references] : tensors) {
            if (tensor->has_storage() &&
                (c10::raw::intrusive_ptr::use_count(tensor) != references ||
                 tensor->storage().use_count() !=
                     storages.at(tensor->storage().unsafeGetStorageImpl()))) {
                lent.insert(tensor->storage().unsafeGetStorageImpl());
            }
        }
    }

    bool owns(const at::Tensor &tensor) const
    {
        return lent.count(tensor.storage().unsafeGetStorageImpl()) == 0;
    }

    void count(const c10::IValue &value)
    {
        if (value.isTensor()) {
            const at::Tensor &tensor = value.toTensor();
            if (tensor.defined() && tensors[tensor.unsafeGetTensorImpl()]++ == 0 &&
                tensor.has_storage()) {
                storages[tensor.storage().unsafeGetStorageImpl()]++;
            }
        } else if (value.isTuple()) {
            for (const c10::IValue &item : value.toTupleRef().elements()) {
                count(item);
            }
        } else if (value.isList()) {
            for (const c10::IValue &item : value.toListRef()) {
                count(item);
            }
        } else if (value.isGenericDict()) {
            for (const auto &item : value.toGenericDict()) {
                count(item.value());
            }
        }
    }
};

class OutputWriter {
  public:
    OutputWriter(struct paml_outputs *outputs, Lane *lane,
                 std::optional<c10::Device> to)
        : outputs_(outputs), lane_(lane),
          here_(lane != nullptr ? lane->device() : c10::Device(c10::kCPU)), to_(to)
    {
    }

    /* A result that is one tensor: the common case, without a census. */
    void write_single(at::Tensor tensor)
    {
        const bool ours = tensor.defined() && tensor.use_count() == 1 &&
                          tensor.has_storage() && tensor.storage().use_count() == 1;
        put_tensor(std::move(tensor), ours);
    }

    void write_structure(const c10::IValue &value)
    {
        census_.count(value);
        census_.close();
        /* `value` is one reference; another one means that something kept the
           container, and with it all that is in it. */
        put(value, value.use_count() <= 1);
    }

  private:
    struct paml_value *append(uint32_t kind)
    {
        struct paml_value *value = paml_outputs_append(outputs_, 1);
        if (value == nullptr) {
            throw std::bad_alloc();
        }
        value->kind = kind;
        return value;
    }

    void put(const c10::IValue &value, bool ours)
    {
        if (value.isTensor()) {
            const at::Tensor &tensor = value.toTensor();
            const bool tensor_is_ours = ours && owned(tensor);
            put_tensor(tensor, tensor_is_ours);
        } else if (value.isNone()) {
            append(PAML_NONE);
        } else if (value.isBool()) {
            append(PAML_BOOL)->integer = value.toBool();
        } else if (value.isInt()) {
            append(PAML_INT)->integer = value.toInt();
        } else if (value.isDouble()) {
            append(PAML_FLOAT)->real = value.toDouble();
        } else if (value.isComplexDouble()) {
            put_tensor(at::scalar_tensor(value.toScalar(), at::kComplexDouble), true);
        } else if (value.isString()) {
            put_string(value.toString());
        } else if (value.isDevice()) {
            put_string(c10::ivalue::ConstantString::create(value.toDevice().str()));
        } else if (value.isTuple()) {
            const auto &items = value.toTupleRef().elements();
            append(PAML_TUPLE)->count = (uint32_t)items.size();
            for (const c10::IValue &item : items) {
                put(item, ours && item_is_ours(item));
            }
        } else if (value.isList()) {
            const c10::ArrayRef<c10::IValue> items = value.toListRef();
            append(PAML_LIST)->count = (uint32_t)items.size();
            for (const c10::IValue &item : items) {
                put(item, ours && item_is_ours(item));
            }
        } else if (value.isGenericDict()) {
            const auto items = value.toGenericDict();
            append(PAML_DICT)->count = (uint32_t)items.size();
            for (const auto &item : items) {
                put(item.key(), ours);
                put(item.value(), ours && item_is_ours(item.value()));
            }
        } else {
            throw Failure(PAML_ERR_BACKEND, "the result holds a " +
                                                value.type()->annotation_str() +
                                                ", which does not exist outside "
                                                "TorchScript");
        }
    }

    static bool item_is_ours(const c10::IValue &item)
    {
        return item.isTensor() || !item.isPtrType() || item.use_count() == 1;
    }

    bool owned(const at::Tensor &tensor) const
    {
        return tensor.defined() && tensor.has_storage() && census_.owns(tensor);
    }

    void put_string(c10::intrusive_ptr<c10::ivalue::ConstantString> string)
    {
        struct paml_value *value = append(PAML_STRING);
        value->string.data = string->string().data();
        value->string.size = string->string().size();
        value->owner = string.release();
        value->release = release_string;
    }

    /* Several elements at one address: a caller who writes one would write them all. */
    static bool overlaps_itself(const at::Tensor &tensor)
    {
        if (tensor.is_non_overlapping_and_dense()) {
            return false;
        }
        for (int64_t axis = 0; axis < tensor.dim(); axis++) {
            if (tensor.stride(axis) == 0 && tensor.size(axis) > 1) {
                return true;
            }
        }
        return false;
    }

    void put_tensor(at::Tensor tensor, bool ours)
    {
        if (!tensor.defined()) {
            append(PAML_NONE);
            return;
        }
        if (tensor.layout() != at::kStrided || tensor.is_nested() ||
            tensor.is_quantized() || !tensor.has_storage()) {
            throw Failure(PAML_ERR_BACKEND,
                          std::string("the result holds a ") +
                              (tensor.is_quantized() ? "quantized"
                               : tensor.is_nested()  ? "nested"
                                                     : c10::str(tensor.layout())) +
                              " tensor; only dense strided ones can be handed over");
        }
        if (tensor.is_conj() || tensor.is_neg() || tensor._is_zerotensor()) {
            tensor = tensor.resolve_conj().resolve_neg().clone();
            ours = true;
        }
        if (!to_ && !tensor.device().is_cpu()) {
            tensor = tensor.device() == here_ ? lane_->download(std::move(tensor))
                                              : tensor.to(at::kCPU);
        } else if (to_ && tensor.device() == here_ && *to_ != here_) {
            tensor = lane_ != nullptr ? lane_->send(tensor, *to_) : tensor.to(*to_);
        } else if (!ours || overlaps_itself(tensor)) {
            tensor = tensor.clone();
        }
        if (lane_ != nullptr && lane_->device() == tensor.device()) {
            lane_->lend_to_default_stream(tensor);
        }

        struct paml_value *value = append(PAML_TENSOR);
        DLTensor &to = value->tensor;
        to.data = tensor.data_ptr();
        to.device = dlpack_of(tensor.device());
        to.ndim = (int32_t)tensor.dim();
        to.dtype = at::getDLDataType(tensor);
        to.shape = const_cast<int64_t *>(tensor.sizes().data());
        to.strides = const_cast<int64_t *>(tensor.strides().data());
        value->owner = tensor.unsafeReleaseTensorImpl();
        value->release = release_tensor;
    }

    struct paml_outputs *outputs_;
    Lane *lane_;
    c10::Device here_; /* where the run was */
    std::optional<c10::Device> to_;
    Census census_;
};

} // namespace

void
discard(struct paml_outputs *outputs)
{
    for (uint32_t i = 0; i < outputs->count; i++) {
        if (outputs->values[i].release != nullptr) {
            outputs->values[i].release(outputs->values[i].owner);
        }
    }
    outputs->count = 0;
}

void
write_outputs(c10::IValue result, struct paml_outputs *outputs, Lane *lane,
              std::optional<c10::Device> to)
{
    OutputWriter writer(outputs, lane, to);

    try {
        if (result.isTensor()) {
            writer.write_single(std::move(result).toTensor());
        } else {
            writer.write_structure(result);
        }
    } catch (...) {
        discard(outputs);
        throw;
    }
}

} // namespace pyasyncml
