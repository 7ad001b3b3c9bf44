/* Arguments of operators, fitted to their schemas once. */
#include "graph.h"

#include <algorithm>

#include <ATen/ScalarOps.h>
#include <ATen/core/jit_type.h>

#include "errors.h"

namespace pyasyncml {
namespace {

const c10::TypePtr &
without_optional(const c10::TypePtr &type)
{
    if (type->kind() == c10::TypeKind::OptionalType) {
        return type->expectRef<c10::OptionalType>().getElementType();
    }
    return type;
}

/* Operators whose argument of tensor type is given a number, as eager code may. */
c10::IValue
number_as_tensor(const c10::IValue &number)
{
    at::Tensor wrapped = at::scalar_to_tensor(number.toScalar());
    wrapped.unsafeGetTensorImpl()->set_wrapped_number(true);
    return wrapped;
}

class Resolver {
  public:
    Resolver(const Graph &graph, const std::vector<bool> &is_number)
        : graph_(graph), is_number_(is_number)
    {
    }

    void fit(Operand &operand, const c10::TypePtr &wanted, int64_t length) const
    {
        const c10::TypePtr &type = without_optional(wanted);
        switch (operand.kind) {
        case Operand::Kind::Slot:
            fit_slot(operand, type);
            return;
        case Operand::Kind::List:
            fit_list(operand, type);
            return;
        case Operand::Kind::Constant:
            fit_constant(operand, wanted, type, length);
            return;
        default:
            return;
        }
    }

  private:
    void fit_slot(Operand &operand, const c10::TypePtr &type) const
    {
        if (!is_number_[(size_t)operand.slot]) {
            return;
        }
        if (type->kind() == c10::TypeKind::TensorType) {
            operand.kind = Operand::Kind::Tensor;
        } else if (type->kind() == c10::TypeKind::FloatType) {
            operand.kind = Operand::Kind::Double;
        }
    }

    void fit_list(Operand &operand, const c10::TypePtr &type) const
    {
        if (type->kind() != c10::TypeKind::ListType) {
            throw Failure(PAML_ERR_LOAD,
                          "got a list for an argument of type " + type->str());
        }
        operand.type = type->expectRef<c10::ListType>().getElementType();
        bool constant = true;
        for (Operand &item : operand.items) {
            fit(item, operand.type, 0);
            constant &= item.kind == Operand::Kind::Constant;
        }
        if (constant) {
            c10::impl::GenericList list(operand.type);
            for (Operand &item : operand.items) {
                list.push_back(item.value);
            }
            operand = Operand();
            operand.value = std::move(list);
        }
    }

    void fit_constant(Operand &operand, const c10::TypePtr &wanted,
                      const c10::TypePtr &type, int64_t length) const
    {
        c10::IValue &value = operand.value;
        const bool optional = wanted->kind() == c10::TypeKind::OptionalType;

        if (value.isNone()) {
            if (!optional && type->kind() == c10::TypeKind::TensorType) {
                value = at::Tensor();
            }
            return;
        }
        switch (type->kind()) {
        case c10::TypeKind::TensorType:
            if (value.isScalar()) {
                value = number_as_tensor(value);
            }
            return;
        case c10::TypeKind::FloatType:
            if (value.isInt() || value.isBool()) {
                value = value.toScalar().toDouble();
            }
            return;
        case c10::TypeKind::IntType:
            if (value.isBool()) {
                value = (int64_t)value.toBool();
            }
            return;
        case c10::TypeKind::BoolType:
            if (value.isInt()) {
                value = value.toInt() != 0;
            }
            return;
        case c10::TypeKind::DeviceObjType:
            if (value.isDevice() && value.toDevice().type() == graph_.home.type() &&
                graph_.beside.empty()) {
                operand.kind = Operand::Kind::Device;
            }
            return;
        case c10::TypeKind::ListType: {
            /* One number where the schema says int[2]. */
            if (value.isList()) {
                return;
            }
            Operand list;
            list.kind = Operand::Kind::List;
            list.items.assign((size_t)std::max<int64_t>(length, 1), operand);
            operand = std::move(list);
            fit_list(operand, type);
            return;
        }
        default:
            return;
        }
    }

    const Graph &graph_;
    const std::vector<bool> &is_number_;
};

} // namespace

void
resolve_call(const Graph &graph, Node &node, const std::string &name,
             const std::string &overload, const std::vector<bool> &given,
             const std::vector<bool> &is_number)
{
    auto &dispatcher = c10::Dispatcher::singleton();

    node.op = dispatcher.findSchema({name, overload});
    if (!node.op) {
        throw Failure(PAML_ERR_LOAD, "this torch has no operator " + name +
                                         (overload.empty() ? "" : "." + overload));
    }
    if (name == "aten::view" && overload.empty()) {
        node.op_elsewhere = dispatcher.findSchema({"aten::reshape", ""});
    }
    const c10::FunctionSchema &schema = node.op->schema();
    if (node.operands.size() > schema.arguments().size()) {
        throw Failure(PAML_ERR_LOAD, "too many arguments: " + node.place);
    }
    node.operands.resize(schema.arguments().size());
    const Resolver resolver(graph, is_number);
    for (size_t i = 0; i < node.operands.size(); i++) {
        const c10::Argument &argument = schema.arguments()[i];
        if ((i >= given.size() || !given[i]) && argument.default_value()) {
            node.operands[i].value = *argument.default_value();
        }
        try {
            resolver.fit(node.operands[i], argument.type(), argument.N().value_or(0));
        } catch (const Failure &failure) {
            throw Failure(PAML_ERR_LOAD, node.place + ": argument '" + argument.name() +
                                             "': " + failure.what());
        }
    }
}

} // namespace pyasyncml
