/* Whether a device is still there, after a run that failed on it. */
#ifndef PAML_XLA_PROBE_H
#define PAML_XLA_PROBE_H

#include "latch.h"

/* Copies a few bytes there and back, and waits for them. False: that fails, and not for
   a lack of memory. `latch`: one that nothing is pending on. Thread: worker. */
bool paml_xla_device_works(struct pjrt_device *device, struct paml_xla_latch *latch);

#endif
