#include "graph_python.h"

#include <mutex>
#include <vector>

#include <ATen/ATen.h>

#include "errors.h"
#include "graph_program.h"

namespace pyasyncml {
namespace {

/* One Python object of a description, borrowed. Its methods throw Failure where it
   isn't what was expected: a description comes from this package, but a mistake in it
   must not crash. */
class Item {
  public:
    explicit Item(PyObject *object) : object_(object)
    {
    }

    bool is_none() const
    {
        return object_ == Py_None;
    }

    bool is_list() const
    {
        return PyList_Check(object_);
    }

    bool is_tuple() const
    {
        return PyTuple_Check(object_);
    }

    size_t size() const
    {
        if (is_list()) {
            return (size_t)PyList_GET_SIZE(object_);
        }
        if (is_tuple()) {
            return (size_t)PyTuple_GET_SIZE(object_);
        }
        wrong("a list or tuple");
    }

    Item operator[](size_t index) const
    {
        if (index >= size()) {
            wrong("more items");
        }
        return Item(is_list() ? PyList_GET_ITEM(object_, (Py_ssize_t)index)
                              : PyTuple_GET_ITEM(object_, (Py_ssize_t)index));
    }

    std::string text() const
    {
        Py_ssize_t size = 0;
        const char *data = PyUnicode_Check(object_)
                               ? PyUnicode_AsUTF8AndSize(object_, &size)
                               : nullptr;
        if (data == nullptr) {
            PyErr_Clear();
            wrong("a str");
        }
        return std::string(data, (size_t)size);
    }

    int64_t integer() const
    {
        const long long value = PyLong_Check(object_) ? PyLong_AsLongLong(object_) : 0;
        if (!PyLong_Check(object_) || PyErr_Occurred()) {
            PyErr_Clear();
            wrong("an int of 64 bits");
        }
        return value;
    }

    bool truth() const
    {
        return object_ == Py_True;
    }

    /* The object that an attribute `_cdata` of torch points to. */
    template <typename T> c10::intrusive_ptr<T> pointer() const
    {
        void *address = PyLong_Check(object_) ? PyLong_AsVoidPtr(object_) : nullptr;
        if (address == nullptr) {
            PyErr_Clear();
            wrong("the address of an object");
        }
        return c10::intrusive_ptr<T>::unsafe_reclaim_from_nonowning(
            static_cast<T *>(address));
    }

    /* None, a bool, a number or a string. */
    c10::IValue literal() const
    {
        if (is_none()) {
            return {};
        }
        if (PyBool_Check(object_)) {
            return truth();
        }
        if (PyLong_Check(object_)) {
            return integer();
        }
        if (PyFloat_Check(object_)) {
            return PyFloat_AS_DOUBLE(object_);
        }
        if (PyComplex_Check(object_)) {
            return c10::complex<double>(PyComplex_RealAsDouble(object_),
                                        PyComplex_ImagAsDouble(object_));
        }
        return text();
    }

    [[noreturn]] void wrong(const char *wanted) const
    {
        throw Failure(PAML_ERR_LOAD, std::string("graph: expected ") + wanted +
                                         ", got " + Py_TYPE(object_)->tp_name);
    }

  private:
    PyObject *object_;
};

c10::ScalarType
dtype_named(const std::string &name)
{
    const auto &dtypes = c10::getStringToDtypeMap();
    const auto found = dtypes.find(name);
    if (found == dtypes.end()) {
        throw Failure(PAML_ERR_LOAD, "torch has no dtype " + name);
    }
    return found->second;
}

int64_t
layout_named(const std::string &name)
{
    if (name != "strided") {
        throw Failure(PAML_ERR_LOAD, "tensors of layout " + name + " aren't served");
    }
    return (int64_t)c10::Layout::Strided;
}

int64_t
memory_format_named(const std::string &name)
{
    if (name == "contiguous_format") {
        return (int64_t)c10::MemoryFormat::Contiguous;
    }
    if (name == "preserve_format") {
        return (int64_t)c10::MemoryFormat::Preserve;
    }
    if (name == "channels_last") {
        return (int64_t)c10::MemoryFormat::ChannelsLast;
    }
    if (name == "channels_last_3d") {
        return (int64_t)c10::MemoryFormat::ChannelsLast3d;
    }
    throw Failure(PAML_ERR_LOAD, "unknown memory format " + name);
}

class GraphReader {
  public:
    explicit GraphReader(Graph &graph) : graph_(graph)
    {
    }

    void read(const Item &description)
    {
        graph_.name = description[0].text();
        graph_.home = c10::Device(description[1].text());
        graph_.shares_state = description[2].truth();
        each(description[3], [&](const Item &item) {
            graph_.beside.push_back(c10::Device(item.text()));
        });
        graph_.n_slots = (size_t)description[4].integer();
        is_number_.resize(graph_.n_slots);
        each(description[5], [&](const Item &item) { read_constant(item); });
        each(description[6], [&](const Item &item) {
            graph_.symbols.push_back(
                {item[0].text(), item[1].integer(), item[2].integer()});
        });
        each(description[7], [&](const Item &item) { read_leaf(item); });
        each(description[8], [&](const Item &item) { read_argument(item); });
        each(description[9], [&](const Item &item) { read_body(item); });
        if (graph_.bodies.empty()) {
            throw Failure(PAML_ERR_LOAD, "graph: no body");
        }
        if (!description[12].is_none()) {
            graph_.compiled = std::make_unique<CompiledPackage>(
                description[12][0].text(), (size_t)description[12][1].integer());
        }
        for (const Body &body : graph_.bodies) {
            for (const Node &node : body.nodes) {
                check_bodies(node);
            }
        }
        graph_.output = read_tree(description[10], graph_.bodies[0].results.size());
        each(description[11], [&](const Item &item) { read_output(item); });
        graph_.finish();
    }

  private:
    template <typename Visit> static void each(const Item &items, const Visit &visit)
    {
        const size_t size = items.size();
        for (size_t i = 0; i < size; i++) {
            visit(items[i]);
        }
    }

    int32_t slot(const Item &item) const
    {
        const int64_t number = item.integer();
        if (number < -1 || number >= (int64_t)graph_.n_slots) {
            item.wrong("a slot");
        }
        return (int32_t)number;
    }

    void read_constant(const Item &item)
    {
        const at::Tensor tensor(item.pointer<c10::TensorImpl>());
        if (tensor.key_set().has(c10::DispatchKey::Python) || !tensor.has_storage()) {
            throw Failure(PAML_ERR_LOAD,
                          "a weight is a " +
                              std::string(c10::toString(tensor.key_set())) +
                              " tensor, without memory of its own");
        }
        if (graph_.constants.size() >= graph_.n_slots) {
            item.wrong("fewer constants than slots");
        }
        graph_.constants.push_back({tensor.detach(), tensor.requires_grad(), false});
    }

    void read_leaf(const Item &item)
    {
        InputLeaf leaf;
        const std::string kind = item[0].text();
        leaf.path = item[1].text();
        leaf.slot = slot(item[2]);
        leaf.argument.name = leaf.path;
        if (kind == "tensor") {
            leaf.argument.type = c10::TensorType::get();
            leaf.dtype = dtype_named(item[3].text());
            each(item[4], [&](const Item &size) {
                leaf.sizes.push_back(
                    {size[0].integer(), size[2].integer(), symbol(size[1])});
            });
        } else if (kind == "number") {
            leaf.kind = InputLeaf::Kind::Number;
            const std::string type = item[3].text();
            leaf.argument.type = type == "int"     ? c10::TypePtr(c10::IntType::get())
                                 : type == "float" ? c10::TypePtr(c10::FloatType::get())
                                                   : c10::TypePtr(c10::BoolType::get());
            leaf.symbol = symbol(item[4]);
        } else {
            leaf.kind = InputLeaf::Kind::Fixed;
            leaf.argument.type = c10::AnyType::get();
            leaf.fixed = item[3].literal();
        }
        leaf.argument.type_name = leaf.argument.type->annotation_str();
        if (leaf.slot >= 0) {
            is_number_[(size_t)leaf.slot] = leaf.kind == InputLeaf::Kind::Number;
        }
        graph_.leaves.push_back(std::move(leaf));
    }

    int32_t symbol(const Item &item) const
    {
        const int64_t number = item.integer();
        if (number < -1 || number >= (int64_t)graph_.symbols.size()) {
            item.wrong("a symbol");
        }
        return (int32_t)number;
    }

    Tree read_tree(const Item &item, size_t n_leaves) const
    {
        Tree tree;
        const std::string kind = item[0].text();
        if (kind == "leaf") {
            const int64_t leaf = item[1].integer();
            if (leaf < 0 || (size_t)leaf >= n_leaves) {
                item.wrong("a leaf");
            }
            tree.leaf = (uint32_t)leaf;
            return tree;
        }
        tree.kind = kind == "tuple"  ? PAML_TUPLE
                    : kind == "list" ? PAML_LIST
                    : kind == "dict" ? PAML_DICT
                                     : PAML_NONE;
        if (tree.kind == PAML_NONE) {
            item.wrong("a tree");
        }
        each(item[1], [&](const Item &part) {
            if (tree.kind == PAML_DICT) {
                tree.keys.push_back(part[0].literal());
            }
            tree.items.push_back(
                read_tree(tree.kind == PAML_DICT ? part[1] : part, n_leaves));
        });
        return tree;
    }

    void read_argument(const Item &item)
    {
        InputArgument argument;
        argument.name = item[0].text();
        argument.type = item[1].text();
        argument.tree = read_tree(item[2], graph_.leaves.size());
        argument.optional = item[3].truth();
        if (argument.tree.kind == PAML_NONE) {
            for (const Size &size : graph_.leaves[argument.tree.leaf].sizes) {
                argument.shape.push_back(size.symbol < 0 ? size.offset : -1);
            }
        }
        graph_.arguments.push_back(std::move(argument));
    }

    void read_output(const Item &item)
    {
        OutputLeaf leaf;
        if (!item[0].is_none()) {
            leaf.name = item[0].text();
        }
        if (!item[1].is_none()) {
            leaf.dtype = dtype_named(item[1].text());
            each(item[2],
                 [&](const Item &size) { leaf.shape.push_back(size.integer()); });
        }
        graph_.output_leaves.push_back(std::move(leaf));
    }

    Operand read_operand(const Item &item) const
    {
        Operand operand;
        if (item.is_list()) {
            operand.kind = Operand::Kind::List;
            operand.type = c10::AnyType::get();
            each(item, [&](const Item &part) {
                operand.items.push_back(read_operand(part));
            });
            return operand;
        }
        if (!item.is_tuple()) {
            operand.value = item.literal();
            return operand;
        }
        const std::string kind = item[0].text();
        if (kind == "slot") {
            operand.kind = Operand::Kind::Slot;
            operand.slot = slot(item[1]);
            if (operand.slot < 0) {
                item.wrong("a slot");
            }
        } else if (kind == "dtype") {
            operand.value = (int64_t)dtype_named(item[1].text());
        } else if (kind == "layout") {
            operand.value = layout_named(item[1].text());
        } else if (kind == "memory_format") {
            operand.value = memory_format_named(item[1].text());
        } else if (kind == "device") {
            operand.value = c10::Device(item[1].text());
        } else if (kind == "generator") {
            operand.value = at::Generator(item[1].pointer<c10::GeneratorImpl>());
        } else {
            item.wrong("an operand");
        }
        return operand;
    }

    /* (kind, operator, overload, operands, results, place, bodies) */
    Node read_node(const Item &item)
    {
        Node node;
        const std::string kind = item[0].text();
        node.place = item[5].text();
        std::vector<bool> given; /* not those that are ("default",) */
        each(item[3], [&](const Item &part) {
            given.push_back(!(part.is_tuple() && part.size() == 1));
            node.operands.push_back(given.back() ? read_operand(part) : Operand());
        });
        each(item[4], [&](const Item &part) { node.results.push_back(slot(part)); });
        each(item[6], [&](const Item &part) {
            node.bodies.push_back((uint32_t)part.integer());
        });
        if (kind == "call") {
            resolve_call(graph_, node, item[1].text(), item[2].text(), given,
                         is_number_);
            const auto &returns = node.op->schema().returns();
            if (node.results.size() > returns.size()) {
                throw Failure(PAML_ERR_LOAD, node.place + ": has fewer results");
            }
            for (size_t i = 0; i < node.results.size(); i++) {
                mark_number(node.results[i], returns[i].type()->kind());
            }
            return node;
        }
        const auto known = node_kind_of(kind);
        if (!known) {
            throw Failure(PAML_ERR_LOAD, "unknown node " + kind);
        }
        node.kind = *known;
        if (node.kind == NodeKind::Shard) {
            check_shard(node, item);
        }
        if (node.bodies.empty() && node.kind != NodeKind::GetItem &&
            node.kind != NodeKind::Compiled && node.kind != NodeKind::Shard) {
            for (const int32_t result : node.results) {
                mark_number(result, c10::TypeKind::NumberType);
            }
        }
        return node;
    }

    /* (tensors, which part, of how many) */
    void check_shard(const Node &node, const Item &item) const
    {
        const std::vector<Operand> &operands = node.operands;
        if (operands.size() != 3 || operands[0].kind != Operand::Kind::List ||
            operands[0].items.size() != node.results.size() ||
            !operands[1].value.isInt() || !operands[2].value.isInt() ||
            operands[1].value.toInt() < 0 ||
            operands[1].value.toInt() >= operands[2].value.toInt() ||
            (!graph_.beside.empty() &&
             operands[2].value.toInt() != 1 + (int64_t)graph_.beside.size())) {
            item.wrong("a shard");
        }
    }

    void mark_number(int32_t result, c10::TypeKind kind)
    {
        if (result >= 0) {
            is_number_[(size_t)result] =
                kind == c10::TypeKind::NumberType || kind == c10::TypeKind::IntType ||
                kind == c10::TypeKind::FloatType || kind == c10::TypeKind::BoolType ||
                kind == c10::TypeKind::SymIntType;
        }
    }

    void read_body(const Item &item)
    {
        Body body;
        each(item[0], [&](const Item &part) { body.inputs.push_back(slot(part)); });
        each(item[1], [&](const Item &part) { body.nodes.push_back(read_node(part)); });
        each(item[2],
             [&](const Item &part) { body.results.push_back(read_operand(part)); });
        graph_.bodies.push_back(std::move(body));
    }

    void check_bodies(const Node &node) const
    {
        const size_t wanted =
            node.kind == NodeKind::Cond || node.kind == NodeKind::WhileLoop ? 2 : 0;
        if (node.bodies.size() != wanted) {
            throw Failure(PAML_ERR_LOAD, node.place + ": wrong number of bodies");
        }
        if (node.kind == NodeKind::Compiled && graph_.compiled == nullptr) {
            throw Failure(PAML_ERR_LOAD, "graph: there is no compiled program");
        }
        for (const uint32_t body : node.bodies) {
            if (body == 0 || body >= graph_.bodies.size()) {
                throw Failure(PAML_ERR_LOAD, node.place + ": no such body");
            }
        }
    }

    Graph &graph_;
    std::vector<bool> is_number_;
};

/* What Python objects outlive their capsule, since a worker still runs the graph. */
struct Kept {
    std::weak_ptr<GraphWeights> weights;
    std::weak_ptr<Graph> graph; /* which others' weights share: it has constants too */
    PyObject *objects;
};

std::mutex kept_lock;
std::vector<Kept> kept;

/* Thread: any. GIL: held. Locks: kept_lock, never while Python code may run. */
void
drop_what_has_ended()
{
    std::vector<PyObject *> dropped;
    {
        const std::lock_guard<std::mutex> lock(kept_lock);
        for (size_t i = 0; i < kept.size();) {
            if (kept[i].weights.expired() && kept[i].graph.expired()) {
                dropped.push_back(kept[i].objects);
                kept[i] = kept.back();
                kept.pop_back();
            } else {
                i++;
            }
        }
    }
    for (PyObject *objects : dropped) {
        Py_DECREF(objects);
    }
}

constexpr char CAPSULE[] = "pyasyncml.torch.graph";

void
destroy_options(PyObject *capsule)
{
    auto *options = static_cast<GraphOptions *>(PyCapsule_GetPointer(capsule, CAPSULE));
    const Kept entry = {options->weights, options->graph,
                        static_cast<PyObject *>(PyCapsule_GetContext(capsule))};
    delete options;
    {
        const std::lock_guard<std::mutex> lock(kept_lock);
        kept.push_back(entry);
    }
    drop_what_has_ended();
}

} // namespace

static PyObject *
new_capsule(std::unique_ptr<GraphOptions> options, PyObject *keep)
{
    PyObject *capsule = PyCapsule_New(options.get(), CAPSULE, destroy_options);

    if (capsule != nullptr) {
        options.release();
        PyCapsule_SetContext(capsule, Py_NewRef(keep));
    }
    return capsule;
}

/* The C++ exception under way as Python's. */
static PyObject *
raise()
{
    struct paml_error error;
    const int code = report(&error, PAML_ERR_LOAD);

    PyErr_SetString(code == PAML_ERR_MEMORY ? PyExc_MemoryError : PyExc_ValueError,
                    error.message);
    return nullptr;
}

const char graph_from_python_doc[] =
    "graph(description, keep, /)\n--\n\n"
    "A graph, ready to run, as a capsule: the options of a torch model.";

PyObject *
graph_from_python(PyObject *, PyObject *args)
{
    PyObject *description, *keep;

    if (!PyArg_ParseTuple(args, "OO:graph", &description, &keep)) {
        return nullptr;
    }
    drop_what_has_ended();
    try {
        auto options = std::make_unique<GraphOptions>();
        options->graph = std::make_shared<Graph>();
        GraphReader(*options->graph).read(Item(description));
        options->weights = std::make_shared<GraphWeights>(*options->graph);
        return new_capsule(std::move(options), keep);
    } catch (...) {
        return raise();
    }
}

const char graph_with_weights_doc[] = "with_weights(capsule, tensors, keep, /)\n--\n\n"
                                      "The same graph over other tensors of the same "
                                      "kinds: as many as it has constants,\n"
                                      "in their order. A new capsule.";

PyObject *
graph_with_weights(PyObject *, PyObject *args)
{
    PyObject *capsule, *tensors, *keep;

    if (!PyArg_ParseTuple(args, "OOO:with_weights", &capsule, &tensors, &keep)) {
        return nullptr;
    }
    const auto *from =
        static_cast<const GraphOptions *>(PyCapsule_GetPointer(capsule, CAPSULE));
    if (from == nullptr) {
        return nullptr;
    }
    drop_what_has_ended();
    try {
        const Item items(tensors);
        std::vector<at::Tensor> weights;
        for (size_t i = 0; i < items.size(); i++) {
            weights.push_back(at::Tensor(items[i].pointer<c10::TensorImpl>()).detach());
        }
        auto options = std::make_unique<GraphOptions>();
        options->graph = from->graph;
        options->weights =
            std::make_shared<GraphWeights>(*from->graph, std::move(weights));
        return new_capsule(std::move(options), keep);
    } catch (...) {
        return raise();
    }
}

} // namespace pyasyncml
