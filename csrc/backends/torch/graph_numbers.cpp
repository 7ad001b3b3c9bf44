/* Arithmetic on sizes, as Python does it. */
#include "graph.h"

#include <cmath>
#include <limits>
#include <unordered_map>

#include "errors.h"

namespace pyasyncml {
namespace {

using Numbers = std::vector<c10::IValue>;

bool
is_true(const c10::IValue &value)
{
    if (value.isBool()) {
        return value.toBool();
    }
    if (value.isTensor()) {
        return value.toTensor().item().toBool();
    }
    return value.isInt() ? value.toInt() != 0 : value.toDouble() != 0;
}

bool
is_integer(const c10::IValue &value)
{
    return value.isInt() || value.isBool();
}

int64_t
as_integer(const c10::IValue &value)
{
    return value.isBool() ? (int64_t)value.toBool() : value.toInt();
}

double
as_double(const c10::IValue &value)
{
    return value.isDouble() ? value.toDouble() : (double)as_integer(value);
}

[[noreturn]] void
overflow()
{
    throw Failure(PAML_ERR_BACKEND, "a size went past 64 bits");
}

[[noreturn]] void
division_by_zero()
{
    throw Failure(PAML_ERR_BACKEND, "a size was divided by zero");
}

/* Rounds down, as Python's // does. */
int64_t
floor_divide(int64_t a, int64_t b)
{
    if (b == 0) {
        division_by_zero();
    }
    if (b == -1) {
        int64_t negated;
        if (__builtin_sub_overflow((int64_t)0, a, &negated)) {
            overflow();
        }
        return negated;
    }
    const int64_t quotient = a / b;
    return quotient - ((a % b != 0) && ((a < 0) != (b < 0)));
}

int64_t
power(int64_t base, int64_t exponent)
{
    int64_t result = 1;
    for (; exponent > 0; exponent--) {
        if (__builtin_mul_overflow(result, base, &result)) {
            overflow();
        }
        if (base == 0 || base == 1) {
            break;
        }
    }
    return result;
}

c10::IValue
integer_arithmetic(NodeKind kind, int64_t a, int64_t b)
{
    int64_t result = 0;
    bool overflowed = false;

    switch (kind) {
    case NodeKind::Add:
        overflowed = __builtin_add_overflow(a, b, &result);
        break;
    case NodeKind::Subtract:
        overflowed = __builtin_sub_overflow(a, b, &result);
        break;
    case NodeKind::Multiply:
        overflowed = __builtin_mul_overflow(a, b, &result);
        break;
    case NodeKind::FloorDivide:
        return floor_divide(a, b);
    case NodeKind::Modulo:
        /* a - floor(a / b) * b without the product's overflow */
        if (b == 0) {
            division_by_zero();
        }
        result = b == -1 ? 0 : a % b;
        return result != 0 && (result < 0) != (b < 0) ? result + b : result;
    case NodeKind::Divide:
        if (b == 0) {
            division_by_zero();
        }
        return (double)a / (double)b;
    case NodeKind::Power:
        return b >= 0 ? c10::IValue(power(a, b))
                      : c10::IValue(std::pow((double)a, (double)b));
    default:
        break;
    }
    if (overflowed) {
        overflow();
    }
    return result;
}

c10::IValue
real_arithmetic(NodeKind kind, double a, double b)
{
    switch (kind) {
    case NodeKind::Add:
        return a + b;
    case NodeKind::Subtract:
        return a - b;
    case NodeKind::Multiply:
        return a * b;
    case NodeKind::Power:
        return std::pow(a, b);
    default:
        break;
    }
    if (b == 0) {
        division_by_zero();
    }
    switch (kind) {
    case NodeKind::FloorDivide:
        return std::floor(a / b);
    case NodeKind::Modulo: {
        const double rest = std::fmod(a, b);
        return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
    }
    default:
        return a / b;
    }
}

/* -1, 0 or 1; 2 where a NaN is neither. */
int
compare(const c10::IValue &a, const c10::IValue &b)
{
    if (is_integer(a) && is_integer(b)) {
        const int64_t x = as_integer(a), y = as_integer(b);
        return x < y ? -1 : x > y;
    }
    const double x = as_double(a), y = as_double(b);
    return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
}

c10::IValue
extreme(const Numbers &values, int wanted)
{
    size_t best = 0;
    for (size_t i = 1; i < values.size(); i++) {
        if (compare(values[i], values[best]) == wanted) {
            best = i;
        }
    }
    return values.at(best);
}

c10::IValue
rounded(NodeKind kind, const c10::IValue &value)
{
    if (is_integer(value)) {
        return as_integer(value);
    }
    const double real = value.toDouble();
    const double whole = kind == NodeKind::Floor   ? std::floor(real)
                         : kind == NodeKind::Ceil  ? std::ceil(real)
                         : kind == NodeKind::ToInt ? std::trunc(real)
                                                   : std::nearbyint(real);
    if (!(std::fabs(whole) < 9.2e18)) {
        overflow();
    }
    return (int64_t)whole;
}

c10::IValue
item_of(const c10::IValue &container, int64_t index)
{
    if (container.isTuple()) {
        return container.toTupleRef().elements().at((size_t)index);
    }
    const auto &list = container.toListRef();
    const int64_t size = (int64_t)list.size();
    index += index < 0 ? size : 0;
    if (index < 0 || index >= size) {
        throw Failure(PAML_ERR_BACKEND, "item " + std::to_string(index) +
                                            " of a list of " + std::to_string(size));
    }
    return list[(size_t)index];
}

c10::IValue
size_of(const c10::IValue &tensor, int64_t axis)
{
    return tensor.toTensor().size(axis);
}

} // namespace

std::optional<NodeKind>
node_kind_of(const std::string &name)
{
    static const std::unordered_map<std::string, NodeKind> kinds = {
        {"sym_size", NodeKind::SymSize},
        {"add", NodeKind::Add},
        {"sub", NodeKind::Subtract},
        {"mul", NodeKind::Multiply},
        {"floordiv", NodeKind::FloorDivide},
        {"truediv", NodeKind::Divide},
        {"mod", NodeKind::Modulo},
        {"pow", NodeKind::Power},
        {"neg", NodeKind::Negate},
        {"eq", NodeKind::Equal},
        {"ne", NodeKind::NotEqual},
        {"lt", NodeKind::Less},
        {"le", NodeKind::LessEqual},
        {"gt", NodeKind::Greater},
        {"ge", NodeKind::GreaterEqual},
        {"and_", NodeKind::And},
        {"or_", NodeKind::Or},
        {"not_", NodeKind::Not},
        {"min", NodeKind::Minimum},
        {"max", NodeKind::Maximum},
        {"sum", NodeKind::Sum},
        {"choose", NodeKind::Choose},
        {"float", NodeKind::ToFloat},
        {"int", NodeKind::ToInt},
        {"floor", NodeKind::Floor},
        {"ceil", NodeKind::Ceil},
        {"round", NodeKind::Round},
        {"sqrt", NodeKind::Sqrt},
        {"getitem", NodeKind::GetItem},
        {"assert", NodeKind::Assert},
        {"cond", NodeKind::Cond},
        {"while_loop", NodeKind::WhileLoop},
        {"compiled", NodeKind::Compiled},
        {"shard", NodeKind::Shard},
        {"barrier", NodeKind::Barrier},
    };
    const auto found = kinds.find(name);
    return found != kinds.end() ? std::optional(found->second) : std::nullopt;
}

c10::IValue
compute_number(NodeKind kind, const Numbers &values)
{
    switch (kind) {
    case NodeKind::SymSize:
        return size_of(values.at(0), values.at(1).toInt());
    case NodeKind::GetItem:
        return item_of(values.at(0), values.at(1).toInt());
    case NodeKind::Assert:
        if (!is_true(values.at(0))) {
            throw Failure(PAML_ERR_INPUT,
                          values.size() > 1 && values[1].isString()
                              ? values[1].toStringRef()
                              : "an assertion of the program doesn't hold");
        }
        return {};
    case NodeKind::Negate:
        return integer_arithmetic(NodeKind::Subtract, 0, as_integer(values.at(0)));
    case NodeKind::Equal:
        return compare(values.at(0), values.at(1)) == 0;
    case NodeKind::NotEqual:
        return compare(values.at(0), values.at(1)) != 0;
    case NodeKind::Less:
        return compare(values.at(0), values.at(1)) == -1;
    case NodeKind::LessEqual: {
        const int order = compare(values.at(0), values.at(1));
        return order == -1 || order == 0;
    }
    case NodeKind::Greater:
        return compare(values.at(0), values.at(1)) == 1;
    case NodeKind::GreaterEqual: {
        const int order = compare(values.at(0), values.at(1));
        return order == 1 || order == 0;
    }
    case NodeKind::And:
        return is_true(values.at(0)) && is_true(values.at(1));
    case NodeKind::Or:
        return is_true(values.at(0)) || is_true(values.at(1));
    case NodeKind::Not:
        return !is_true(values.at(0));
    case NodeKind::Minimum:
        return extreme(values, -1);
    case NodeKind::Maximum:
        return extreme(values, 1);
    case NodeKind::Sum: {
        c10::IValue total = (int64_t)0;
        for (const c10::IValue &value : values) {
            total = compute_number(NodeKind::Add, {total, value});
        }
        return total;
    }
    case NodeKind::Choose:
        return is_true(values.at(0)) ? values.at(1) : values.at(2);
    case NodeKind::ToFloat:
        return as_double(values.at(0));
    case NodeKind::Sqrt:
        return std::sqrt(as_double(values.at(0)));
    case NodeKind::ToInt:
    case NodeKind::Floor:
    case NodeKind::Ceil:
    case NodeKind::Round:
        return rounded(kind, values.at(0));
    default:
        if (is_integer(values.at(0)) && is_integer(values.at(1))) {
            return integer_arithmetic(kind, as_integer(values[0]),
                                      as_integer(values[1]));
        }
        return real_arithmetic(kind, as_double(values[0]), as_double(values[1]));
    }
}

} // namespace pyasyncml
