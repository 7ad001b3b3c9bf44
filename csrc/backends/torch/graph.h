/* A program as a list of calls of ATen operators: what torch.export and make_fx make of
 * a module or a training step.
 *
 * Everything that can be decided once is decided here, when the graph is built:
 * operator handles, what each argument is against its schema's type, which use of a
 * value is its last. A run (graph_instance.h) only pushes and calls.
 *
 * Values live in slots, numbered through all bodies: the constants first, in order.
 *
 * Owner: the capsules that Python holds and the programs made from them, by shared_ptr.
 * Read-only once it is built.
 */
#ifndef PAML_TORCH_GRAPH_H
#define PAML_TORCH_GRAPH_H

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>

#include "backend.h"
#include "compiled.h"
#include "program.h"

namespace pyasyncml {

/* What is pushed for one argument of an operator. */
struct Operand {
    enum class Kind : uint8_t {
        Constant, /* `value` */
        Slot,     /* what is in the slot */
        Last,     /* the same, for the last time: moved out */
        Tensor,   /* the number in the slot as a tensor: add.Tensor(x, size) */
        Double,   /* the number in the slot as a float */
        List,     /* `items`, as a list of `type` */
        Device,   /* the instance's device */
    };

    Kind kind = Kind::Constant;
    int32_t slot = -1;
    c10::IValue value;
    std::vector<Operand> items;
    c10::TypePtr type; /* of a list's elements */
};

/* What a node does besides calling operators: arithmetic on sizes, mostly. */
enum class NodeKind : uint8_t {
    Call,
    SymSize,
    Add,
    Subtract,
    Multiply,
    FloorDivide,
    Divide,
    Modulo,
    Power,
    Negate,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    And,
    Or,
    Not,
    Minimum,
    Maximum,
    Sum,
    Choose, /* torch.sym_ite */
    ToFloat,
    ToInt,
    Floor,
    Ceil,
    Round,
    Sqrt,
    GetItem,
    Assert,
    Cond,
    WhileLoop,
    Compiled, /* all of the program, by Graph::compiled */
    Shard,    /* a replica's rows of the batch, on its device */
    Barrier,  /* waits until all devices have done what was enqueued so far */
};

/* NodeKind of a name that Python uses ("add", "sym_size"); nothing if there is none. */
std::optional<NodeKind> node_kind_of(const std::string &name);

/* A node that is no call: its result, from its arguments. Throws. */
c10::IValue compute_number(NodeKind kind, const std::vector<c10::IValue> &arguments);

struct Node {
    NodeKind kind = NodeKind::Call;
    std::optional<c10::OperatorHandle> op;
    /* Instead of `op` on other devices than the graph was made on: aten::view is valid
       for the strides that one device's kernels happen to give. */
    std::optional<c10::OperatorHandle> op_elsewhere;
    std::vector<Operand> operands;
    std::vector<int32_t> results; /* slots; -1: nobody wants it */
    std::vector<uint32_t> bodies; /* of control flow */
    std::string place;            /* "aten.view (m.py:3: x.view(2))", for messages */
};

struct Body {
    std::vector<int32_t> inputs; /* slots that control flow fills */
    std::vector<Node> nodes;
    std::vector<Operand> results;
};

/* Nested tuples, lists and dicts round numbered leaves. */
struct Tree {
    uint32_t kind = PAML_NONE; /* PAML_TUPLE, LIST, DICT; PAML_NONE: a leaf */
    uint32_t leaf = 0;
    std::vector<Tree> items;
    std::vector<c10::IValue> keys; /* of a dict: strings or ints */
};

/* A size that may vary, by the name that people know it by. */
struct Symbol {
    std::string name;
    int64_t low, high; /* inclusive */
};

/* A size: scale * symbol + offset; symbol -1: offset alone. */
struct Size {
    int64_t scale, offset;
    int32_t symbol;
};

struct InputLeaf {
    enum class Kind : uint8_t { Tensor, Number, Fixed };

    Kind kind = Kind::Tensor;
    std::string path; /* x, batch["mask"][0] */
    Argument argument;
    int32_t slot = -1; /* -1: the graph doesn't use it */
    c10::ScalarType dtype = c10::ScalarType::Undefined;
    std::vector<Size> sizes;
    int32_t symbol = -1; /* a Number: what it is the value of */
    c10::IValue fixed;   /* a Fixed: the only value that it may have */
};

struct InputArgument {
    std::string name, type;
    Tree tree;
    std::vector<int64_t> shape; /* of one tensor: with -1 */
    bool optional = false;      /* all its leaves are fixed */
};

/* What the signature says of one leaf of the output. */
struct OutputLeaf {
    std::string name; /* logits, states[0]; empty: it is the output */
    c10::ScalarType dtype = c10::ScalarType::Undefined; /* of a tensor */
    std::vector<int64_t> shape;                         /* with -1 */
};

/* A tensor that the graph was built round: a parameter, a buffer, a literal. */
struct GraphConstant {
    at::Tensor tensor; /* detached: the same storage and version counter */
    bool requires_grad;
    bool written;
};

class Graph {
  public:
    std::string name;
    c10::Device home{c10::kCPU}; /* where it was traced */
    /* Other accelerators that it runs on too, where it trains a replica on each: its
       devices are its own then, not the instance's, and its inputs stay where they are
       until a Shard takes its part. */
    std::vector<c10::Device> beside;
    /* Written constants are the caller's own, and whoever runs the graph writes to
       them; otherwise every instance has its own copies of what it writes to. */
    bool shares_state = false;

    std::unique_ptr<CompiledPackage> compiled; /* or NULL */

    std::vector<GraphConstant> constants; /* slots 0 to n - 1 */
    std::vector<Symbol> symbols;
    std::vector<InputLeaf> leaves;
    std::vector<InputArgument> arguments;
    std::vector<Body> bodies; /* the first is the program */
    Tree output;
    std::vector<OutputLeaf> output_leaves;
    size_t n_slots = 0;
    bool writes_inputs = false;

    /* Turns what was collected above into what runs; call once, last. Throws
       Failure(PAML_ERR_LOAD). */
    void finish();

    const struct paml_entry *entry() const
    {
        return &entry_;
    }

  private:
    void find_writes();
    void find_last_uses(Body &body);
    void describe();

    std::vector<struct paml_spec> inputs_, outputs_;
    struct paml_entry entry_ = {};
};

/* The tensors that a graph runs over: its own constants, or others of their kind.
 *
 * Owner: as the graph. Read-only but for the table of copies, which has a lock. */
class GraphWeights {
  public:
    explicit GraphWeights(const Graph &graph);
    /* As many as the graph has constants, of the same kinds; throws
       Failure(PAML_ERR_LOAD). */
    GraphWeights(const Graph &graph, std::vector<at::Tensor> tensors);

    /* As an instance on `device` uses them. Instances of a device share their storage,
       but for what they write to. Thread: any. Locks: copies_lock_. */
    std::vector<at::Tensor> on(c10::Device device);

  private:
    const Graph &graph_;
    std::vector<at::Tensor> tensors_;

    std::mutex copies_lock_;
    std::map<std::pair<c10::DeviceType, c10::DeviceIndex>, std::vector<at::Tensor>>
        copies_;
};

/* Fits the node's operands, as Python wrote them, to the operator's schema; those that
   weren't given get their defaults. Throws Failure(PAML_ERR_LOAD). `is_number`: by
   slot. */
void resolve_call(const Graph &graph, Node &node, const std::string &name,
                  const std::string &overload, const std::vector<bool> &given,
                  const std::vector<bool> &is_number);

} // namespace pyasyncml
#endif
