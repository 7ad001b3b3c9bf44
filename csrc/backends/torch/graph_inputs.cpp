/* What a graph's inputs must be, checked before anything runs. The sizes that the graph
 * was traced for are burnt into it: an operator would compute nonsense with others. */
#include "graph_program.h"

#include "errors.h"

namespace pyasyncml {
namespace {

constexpr int64_t UNKNOWN = -1;

std::string
size_text(const Graph &graph, const Size &size)
{
    if (size.symbol < 0) {
        return std::to_string(size.offset);
    }
    std::string text = graph.symbols[(size_t)size.symbol].name;
    if (size.scale != 1) {
        text = std::to_string(size.scale) + "*" + text;
    }
    if (size.offset != 0) {
        text += (size.offset > 0 ? "+" : "") + std::to_string(size.offset);
    }
    return text;
}

std::string
expected_shape(const Graph &graph, const std::vector<Size> &sizes)
{
    std::string text = "[";
    for (const Size &size : sizes) {
        text += (text.size() > 1 ? ", " : "") + size_text(graph, size);
    }
    return text + "]";
}

std::string
shape_of(const at::Tensor &tensor)
{
    std::string text = "[";
    for (const int64_t size : tensor.sizes()) {
        text += (text.size() > 1 ? ", " : "") + std::to_string(size);
    }
    return text + "]";
}

std::string
dtype_text(c10::ScalarType dtype)
{
    return std::string(c10::getDtypeNames(dtype).first);
}

[[noreturn]] void
refuse_input(const InputLeaf &leaf, const std::string &why)
{
    throw Failure(PAML_ERR_INPUT, "input '" + leaf.path + "': " + why);
}

bool
equal(const c10::IValue &a, const c10::IValue &b)
{
    if (a.isNone() || b.isNone()) {
        return a.isNone() && b.isNone();
    }
    if (a.isString() || b.isString()) {
        return a.isString() && b.isString() && a.toStringRef() == b.toStringRef();
    }
    if (a.isScalar() && b.isScalar()) {
        return a.isDouble() || b.isDouble()
                   ? a.toScalar().toDouble() == b.toScalar().toDouble()
                   : a.toScalar().toLong() == b.toScalar().toLong();
    }
    return false;
}

std::string
value_text(const c10::IValue &value)
{
    if (value.isTensor()) {
        return "a tensor";
    }
    if (value.isNone()) {
        return "None";
    }
    if (value.isBool()) {
        return value.toBool() ? "True" : "False";
    }
    return c10::str(value);
}

} // namespace

void
GraphInstance::check_symbol(int32_t symbol, int64_t size, const InputLeaf &leaf,
                            int axis)
{
    const Symbol &bound = graph_.symbols[(size_t)symbol];
    int64_t &known = sizes_[(size_t)symbol];
    auto &[from, from_axis] = sizes_from_[(size_t)symbol];
    const auto place = [](const InputLeaf &of, int at) {
        return at < 0 ? "input '" + of.path + "'"
                      : "axis " + std::to_string(at) + " of input '" + of.path + "'";
    };

    if (size < bound.low || size > bound.high) {
        std::string range =
            bound.high == INT64_MAX
                ? "at least " + std::to_string(bound.low)
                : std::to_string(bound.low) + " to " + std::to_string(bound.high);
        throw Failure(PAML_ERR_INPUT, place(leaf, axis) + " ('" + bound.name +
                                          "'): expected " + range + ", got " +
                                          std::to_string(size));
    }
    if (known == UNKNOWN) {
        known = size;
        from = &leaf;
        from_axis = axis;
    } else if (known != size) {
        throw Failure(PAML_ERR_INPUT, place(leaf, axis) + " ('" + bound.name +
                                          "'): expected " + std::to_string(known) +
                                          ", as " + place(*from, from_axis) +
                                          " has, got " + std::to_string(size));
    }
}

void
GraphInstance::check_tensor(const InputLeaf &leaf, const at::Tensor &tensor)
{
    if (tensor.scalar_type() != leaf.dtype) {
        refuse_input(leaf, "expected dtype " + dtype_text(leaf.dtype) + ", got " +
                               dtype_text(tensor.scalar_type()));
    }
    bool fits = tensor.dim() == (int64_t)leaf.sizes.size();
    for (size_t axis = 0; fits && axis < leaf.sizes.size(); axis++) {
        const Size &size = leaf.sizes[axis];
        const int64_t rest = tensor.size((int64_t)axis) - size.offset;
        if (size.symbol < 0) {
            fits = rest == 0;
        } else if (size.scale != 0 && rest % size.scale == 0) {
            check_symbol(size.symbol, rest / size.scale, leaf, (int)axis);
        } else {
            fits = false;
        }
    }
    if (!fits) {
        refuse_input(leaf, "expected shape " + expected_shape(graph_, leaf.sizes) +
                               ", got " + shape_of(tensor));
    }
}

void
GraphInstance::take_leaf(const InputLeaf &leaf, c10::IValue value)
{
    switch (leaf.kind) {
    case InputLeaf::Kind::Tensor:
        check_tensor(leaf, value.toTensor());
        break;
    case InputLeaf::Kind::Number:
        if (leaf.symbol >= 0 && value.isInt()) {
            check_symbol(leaf.symbol, value.toInt(), leaf, -1);
        }
        break;
    case InputLeaf::Kind::Fixed:
        if (!equal(value, leaf.fixed)) {
            refuse_input(leaf, "the program was exported for " +
                                   value_text(leaf.fixed) + " alone, got " +
                                   value_text(value));
        }
        break;
    }
    if (leaf.slot >= 0) {
        slots_[(size_t)leaf.slot] = std::move(value);
    }
}

void
GraphInstance::read_leaf(InputReader &reader, const InputLeaf &leaf)
{
    take_leaf(leaf, reader.read_part(leaf.argument));
}

void
GraphInstance::read_tree(InputReader &reader, const Tree &tree)
{
    if (tree.kind == PAML_NONE) {
        read_leaf(reader, graph_.leaves[tree.leaf]);
        return;
    }
    const Tree *first = &tree;
    while (first->kind != PAML_NONE && !first->items.empty()) {
        first = &first->items[0];
    }
    const std::string around = first->kind == PAML_NONE
                                   ? " around '" + graph_.leaves[first->leaf].path + "'"
                                   : "";
    const struct paml_value &value = reader.next();
    const bool is_sequence = value.kind == PAML_TUPLE || value.kind == PAML_LIST;
    if (tree.kind == PAML_DICT ? value.kind != PAML_DICT : !is_sequence) {
        throw Failure(PAML_ERR_INPUT, std::string("expected a ") +
                                          (tree.kind == PAML_DICT    ? "dict"
                                           : tree.kind == PAML_TUPLE ? "tuple"
                                                                     : "list") +
                                          around);
    }
    if (value.count != tree.items.size()) {
        throw Failure(PAML_ERR_INPUT, "expected " + std::to_string(tree.items.size()) +
                                          " items" + around + ", got " +
                                          std::to_string(value.count));
    }
    if (tree.kind != PAML_DICT) {
        for (const Tree &item : tree.items) {
            read_tree(reader, item);
        }
        return;
    }
    for (uint32_t i = 0; i < value.count; i++) {
        const struct paml_value &key = reader.next();
        c10::IValue name;
        if (key.kind == PAML_STRING) {
            name = std::string(key.string.data, key.string.size);
        } else if (key.kind == PAML_INT) {
            name = key.integer;
        }
        size_t at = 0;
        while (at < tree.keys.size() && !equal(name, tree.keys[at])) {
            at++;
        }
        if (at == tree.keys.size()) {
            throw Failure(PAML_ERR_INPUT, "there is no key " + value_text(name) +
                                              " in the dict" + around);
        }
        read_tree(reader, tree.items[at]);
    }
}

std::optional<c10::Device>
GraphInstance::read_inputs(const struct paml_run &run)
{
    const bool stay = !graph_.beside.empty(); /* until they are cut into shards */
    InputReader reader(run, stay ? std::nullopt : std::optional(device_),
                       graph_.writes_inputs, borrowed_, stay ? nullptr : lane_.get());

    sizes_.assign(graph_.symbols.size(), UNKNOWN);
    sizes_from_.assign(graph_.symbols.size(), {nullptr, 0});
    if (run.n_arguments > graph_.arguments.size()) {
        throw Failure(PAML_ERR_INPUT, graph_.name + "() takes at most " +
                                          std::to_string(graph_.arguments.size()) +
                                          " inputs; it got " +
                                          std::to_string(run.n_arguments));
    }
    for (size_t i = 0; i < graph_.arguments.size(); i++) {
        const InputArgument &argument = graph_.arguments[i];
        const bool absent = reader.at_end() || reader.skip_absent();
        if (!absent) {
            read_tree(reader, argument.tree);
        } else if (!argument.optional) {
            throw Failure(PAML_ERR_INPUT, "input '" + argument.name + "' is missing");
        }
    }
    return reader.end();
}

} // namespace pyasyncml
