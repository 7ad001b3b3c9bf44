/* What the table of functions knows of a loaded program, whatever it was read from: a
 * TorchScript archive or an exported graph.
 */
#ifndef PAML_TORCH_SERVED_H
#define PAML_TORCH_SERVED_H

#include <memory>

#include "backend.h"

namespace pyasyncml {

/* What one worker needs to run an entry alone.
 *
 * Owner: the engine, from open() to close(). Thread: the worker that opened it, which
 * never holds the GIL. */
class ServedInstance {
  public:
    virtual ~ServedInstance() = default;
    /* Throws; `run->outputs` is empty then. */
    virtual void run(struct paml_run *run) = 0;
};

/* Owner: the model, from load() to unload(). Thread: any after load(). */
class ServedProgram {
  public:
    virtual ~ServedProgram() = default;
    virtual const struct paml_entry *entry() const = 0;
    virtual std::unique_ptr<ServedInstance> open(DLDevice device, int threads) = 0;
};

} // namespace pyasyncml
#endif
