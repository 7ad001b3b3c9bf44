/* What the table of functions knows of a loaded program, whatever it was read from: a
 * TorchScript archive or an exported graph.
 */
#ifndef PAML_TORCH_SERVED_H
#define PAML_TORCH_SERVED_H

#include <exception>
#include <memory>
#include <vector>

#include "backend.h"
#include "lane.h"

namespace pyasyncml {

/* A run that was given to an accelerator and may not have ended. Its results are made
 * already, as far as the host is concerned, and complete when each leg's `done` has
 * passed.
 *
 * Owner: who began it. Thread: the instance's worker. */
struct Flight {
    /* On one of the devices that it runs on. */
    struct Leg {
        explicit Leg(c10::DeviceType type) : done(type)
        {
        }
        Mark done;
        std::vector<at::Tensor> uploaded; /* its inputs that came from the host */
    };

    Flight();
    ~Flight();

    std::vector<Leg> legs; /* in the order of the instance's lanes */
    struct paml_outputs outputs;
    std::exception_ptr error; /* of the call, or what the device said later */
    bool of_device = false;   /* the latter */

    /* The exception under way is the device's. */
    void fail_on_device();
};

/* What one worker needs to run an entry alone.
 *
 * On the CPU a run computes, and that is all. On an accelerator it is a flight: begun,
 * which only enqueues, and ended. Flights end in the order in which they were begun.
 *
 * Owner: the engine, from open() to close(). Thread: the worker that opened it, which
 * never holds the GIL. */
class ServedInstance {
  public:
    ServedInstance(DLDevice device, int threads);
    virtual ~ServedInstance() = default;

    /* Throws; `run->outputs` is empty then. */
    void run(struct paml_run *run);

    /* How many flights there may be at a time; 0 on the CPU. */
    uint32_t depth() const
    {
        return lane_ != nullptr ? 2 : 0;
    }

    /* The inputs' device memory must stay until the end. */
    std::unique_ptr<Flight> begin(const struct paml_run &run);
    /* 0: it is done; otherwise in how many ns to ask again. */
    int64_t ask(Flight &flight) noexcept;
    /* Waits if need be; fills the outputs, or throws the run's error. One that the
       device couldn't recover from is a Failure(PAML_ERR_DEVICE). */
    void end(std::unique_ptr<Flight> flight, struct paml_outputs *outputs);

    /* A result on a device, of a run that has ended, into host memory, dense in C
       order. */
    void download(const DLTensor &result, void *to) const;

  protected:
    /* Runs the entry over `run`'s inputs and writes what it gives (write_outputs), or
       enqueues all that. Throws; `outputs` is empty then. */
    virtual void execute(const struct paml_run &run, struct paml_outputs *outputs) = 0;

    /* Runs use this device too; call before the first run. */
    void add_lane(c10::Device device);
    /* Of all devices that runs use, the instance's first; none on the CPU. */
    std::vector<Lane *> lanes() const;

    const c10::Device device_;
    const int threads_;          /* 0: as the thread has it */
    std::unique_ptr<Lane> lane_; /* on accelerators */

  private:
    std::vector<std::unique_ptr<Lane>> beside_; /* of other devices */
    std::vector<c10::Stream> beside_streams_;   /* theirs that compute */
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
