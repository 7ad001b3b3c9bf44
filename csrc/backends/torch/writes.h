/* What an entry may write to, read off its graph. */
#ifndef PAML_TORCH_WRITES_H
#define PAML_TORCH_WRITES_H

#include <torch/csrc/jit/api/method.h>

#include "program.h"

namespace pyasyncml {

/* Errs on the side of "may write": calls that cannot be inlined count as writing to
   everything. What an operator's schema does not declare is not seen (dropout outside
   training gives its input back, so an in-place op right behind it reaches further
   than the schema says; batch norm's running statistics are known to the analysis). */
Writes writes_of(const torch::jit::Method &method);

} // namespace pyasyncml
#endif
