/* The operators that a device must have itself: making, viewing, copying. */
#include "accelerator.h"

#include <cstring>

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/core/ivalue.h>
#include <ATen/native/Resize.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/sigmoid.h>

#include <ATen/ops/tanh.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

namespace accelerator {

void grow(const c10::Storage &storage, size_t size);

namespace {

const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

c10::Device
device_or_current(std::optional<c10::Device> device)
{
    c10::Device at = device.value_or(c10::Device(TYPE));
    return at.has_index() ? at : c10::Device(TYPE, (c10::DeviceIndex)current_device());
}

at::Tensor
empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype,
      std::optional<c10::Layout>, std::optional<c10::Device> device,
      std::optional<bool>, std::optional<c10::MemoryFormat> format)
{
    const c10::DeviceGuard guard(device_or_current(device));
    return at::detail::empty_generic(size, &allocator(), KEYS,
                                     c10::dtype_or_default(dtype), format);
}

at::Tensor
empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
              std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
              std::optional<c10::Device> device, std::optional<bool>)
{
    const c10::DeviceGuard guard(device_or_current(device));
    return at::detail::empty_strided_generic(size, stride, &allocator(), KEYS,
                                             c10::dtype_or_default(dtype));
}

const at::Tensor &
resize_(const at::Tensor &self, c10::IntArrayRef size,
        std::optional<c10::MemoryFormat> format)
{
    const size_t bytes = at::detail::computeStorageNbytesContiguous(
        size, self.dtype().itemsize(), (size_t)self.storage_offset());
    if (bytes > self.storage().nbytes()) {
        grow(self.storage(), bytes);
    }
    self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
    if (format.has_value()) {
        self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
    }
    return self;
}

at::Tensor &
set_storage_(at::Tensor &self, at::Storage source)
{
    const auto count = (int64_t)(source.nbytes() / (size_t)self.dtype().itemsize());
    return at::native::set_storage_cpu_(self, std::move(source), 0, {count}, {});
}

at::Tensor &
set_nothing_(at::Tensor &self)
{
    at::Storage nothing(c10::Storage::use_byte_size_t(), 0,
                        c10::DataPtr(nullptr, self.device()), &allocator(), true);
    return at::native::set_storage_cpu_(self, std::move(nothing), 0, {0}, {});
}

/* --- copies --- */

bool
same_layout(const at::Tensor &one, const at::Tensor &other)
{
    return one.scalar_type() == other.scalar_type() &&
           one.strides() == other.strides() && one.is_non_overlapping_and_dense();
}

void
move(Queue &queue, Kind kind, const at::Tensor &from, const at::Tensor &to,
     const at::Tensor &on_this_side, bool non_blocking)
{
    const size_t bytes = from.nbytes();
    const void *source = from.const_data_ptr();
    void *target = to.data_ptr();
    const bool pinned = is_pinned(on_this_side.const_data_ptr());
    Counters &counters = queue.device->counters;
    const bool in = kind == TO_DEVICE;
    (in ? counters.to_device : counters.to_host)++;
    (in ? counters.to_device_bytes : counters.to_host_bytes) += (int64_t)bytes;
    (in ? counters.to_device_pinned : counters.to_host_pinned) += pinned;

    queue.enqueue(kind, [device = queue.device, source, target, bytes] {
        if (is_poisoned(source, bytes)) {
            device->counters.poison_read++;
        }
        std::memcpy(target, source, bytes);
    });
    if (non_blocking && pinned) {
        host_allocator().record_event(const_cast<void *>(on_this_side.const_data_ptr()),
                                      on_this_side.storage().data_ptr().get_context(),
                                      stream_of(queue));
    } else {
        queue.synchronize();
    }
}

void
on_stream(Queue &queue, const at::Tensor &from, const at::Tensor &to)
{
    queue.device->counters.on_device++;
    queue.enqueue(ON_DEVICE,
                  [device = queue.device, from = on_host(from), to = on_host(to)] {
                      check_read(*device, from);
                      to.copy_(from);
                  });
}

void
between_devices(const at::Tensor &from, const at::Tensor &to)
{
    Queue &source = queue_of(current_stream(from.device().index()));
    Queue &target = queue_of(current_stream(to.device().index()));
    source.wait_for(target.record_for_memory());
    on_stream(source, from, to);
    target.wait_for(source.record());
}

at::Tensor
copy_from(const at::Tensor &self, const at::Tensor &to, bool non_blocking)
{
    const bool in = self.device().type() != TYPE, out = to.device().type() != TYPE;
    if (to.numel() == 0) {
        return to;
    }
    const at::Tensor from = self.expand(to.sizes());
    const c10::DeviceGuard guard(out ? self.device() : to.device());
    Queue &queue = queue_of(current_stream(current_device()));

    if (!in && !out) {
        if (from.device() != to.device()) {
            between_devices(from, to);
        } else {
            on_stream(queue, from, to);
        }
    } else if (in) {
        if (same_layout(from, to)) {
            move(queue, TO_DEVICE, from, to, from, non_blocking);
        } else {
            const at::Tensor host = from.to(to.scalar_type()).contiguous();
            if (to.is_contiguous()) {
                move(queue, TO_DEVICE, host, to, host, non_blocking);
            } else {
                const at::Tensor staged = at::empty(to.sizes(), to.options());
                move(queue, TO_DEVICE, host, staged, host, non_blocking);
                on_stream(queue, staged, to);
            }
        }
    } else {
        if (same_layout(from, to)) {
            move(queue, TO_HOST, from, to, to, non_blocking);
        } else {
            const at::Tensor whole =
                from.to(from.options().dtype(to.scalar_type())).contiguous();
            if (to.is_contiguous()) {
                move(queue, TO_HOST, whole, to, to, non_blocking);
            } else {
                const at::Tensor host = at::empty(to.sizes(), to.options());
                move(queue, TO_HOST, whole, host, host, false);
                to.copy_(host);
            }
        }
    }
    return to;
}

at::Tensor
copy_from_and_resize(const at::Tensor &self, const at::Tensor &to)
{
    to.resize_(self.sizes());
    return copy_from(self, to, false);
}

at::Tensor &
copy_(at::Tensor &self, const at::Tensor &from, bool non_blocking)
{
    if (!self.is_same(from)) {
        copy_from(from, self, non_blocking);
    }
    return self;
}

at::Scalar
local_scalar(const at::Tensor &self)
{
    queue_of(current_stream(self.device().index())).synchronize();
    const at::Tensor view = on_host(self);
    check_read(device_at(self.device().index()), view);
    return view.item();
}

void
record_stream(at::Tensor &self, at::Stream stream)
{
    allocator().recordStream(self.storage().data_ptr(), stream);
}

/* --- cells that RNNs take in one piece on anything but a CPU --- */

at::Tensor
plus(const at::Tensor &tensor, const std::optional<at::Tensor> &bias)
{
    return bias.has_value() && bias->defined() ? tensor + *bias : tensor;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor>
lstm_cell(const at::Tensor &input_gates, const at::Tensor &hidden_gates,
          const at::Tensor &cx, const std::optional<at::Tensor> &input_bias,
          const std::optional<at::Tensor> &hidden_bias)
{
    const at::Tensor gates =
        plus(input_gates, input_bias) + plus(hidden_gates, hidden_bias);
    const auto parts = gates.unsafe_chunk(4, 1);
    const at::Tensor in = parts[0].sigmoid(), forget = parts[1].sigmoid(),
                     cell = parts[2].tanh(), out = parts[3].sigmoid();
    const at::Tensor cy = forget * cx + in * cell;
    return {out * cy.tanh(), cy, at::cat({in, forget, cell, out}, 1)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor>
lstm_cell_backward(const std::optional<at::Tensor> &grad_hy,
                   const std::optional<at::Tensor> &grad_cy, const at::Tensor &cx,
                   const at::Tensor &cy, const at::Tensor &workspace, bool has_bias)
{
    const auto parts = workspace.chunk(4, 1);
    const at::Tensor &in = parts[0], &forget = parts[1], &cell = parts[2],
                     &out = parts[3];
    const at::Tensor squashed = cy.tanh();
    at::Tensor of_cell = at::zeros_like(cx), of_out = at::zeros_like(cx);
    if (grad_cy.has_value() && grad_cy->defined()) {
        of_cell = of_cell + *grad_cy;
    }
    if (grad_hy.has_value() && grad_hy->defined()) {
        of_cell = of_cell + *grad_hy * out * (1 - squashed * squashed);
        of_out = *grad_hy * squashed;
    }
    const at::Tensor gates =
        at::cat({of_cell * cell * in * (1 - in), of_cell * cx * forget * (1 - forget),
                 of_cell * in * (1 - cell * cell), of_out * out * (1 - out)},
                1);
    return {gates, of_cell * forget, has_bias ? gates.sum(0) : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor>
gru_cell(const at::Tensor &input_gates, const at::Tensor &hidden_gates,
         const at::Tensor &hx, const std::optional<at::Tensor> &input_bias,
         const std::optional<at::Tensor> &hidden_bias)
{
    const auto x = plus(input_gates, input_bias).unsafe_chunk(3, 1);
    const auto h = plus(hidden_gates, hidden_bias).unsafe_chunk(3, 1);
    const at::Tensor reset = (x[0] + h[0]).sigmoid(), update = (x[1] + h[1]).sigmoid();
    const at::Tensor fresh = (x[2] + reset * h[2]).tanh();
    return {fresh + update * (hx - fresh),
            at::cat({reset, update, fresh, hx, h[2]}, 1)};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m)
{
    m.impl("empty.memory_format", empty);
    m.impl("empty_strided", empty_strided);
    m.impl("as_strided", at::native::as_strided_tensorimpl);
    m.impl("view", at::native::view);
    m.impl("_reshape_alias", at::native::_reshape_alias);
    m.impl("unfold", at::native::unfold);
    m.impl("view_as_real", at::native::view_as_real);
    m.impl("view_as_complex", at::native::view_as_complex);
    m.impl("resize_", resize_);
    m.impl("set_.source_Storage", set_storage_);
    m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
    m.impl("set_.source_Tensor", at::native::set_tensor_);
    m.impl("set_", set_nothing_);
    m.impl("_copy_from", copy_from);
    m.impl("_copy_from_and_resize", copy_from_and_resize);
    m.impl("copy_", copy_);
    m.impl("_local_scalar_dense", local_scalar);
    m.impl("record_stream", record_stream);
    m.impl("_thnn_fused_lstm_cell", lstm_cell);
    m.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
    m.impl("_thnn_fused_gru_cell", gru_cell);
}

} // namespace
} // namespace accelerator
