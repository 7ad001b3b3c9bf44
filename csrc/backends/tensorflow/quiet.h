/* TensorFlow says on stderr that it is there, and what it reads. It isn't asked to,
 * unless PYASYNCML_LOG=debug asks.
 *
 * Its log level comes from the environment when its library is loaded. One message
 * comes before even that is read, from a static initialiser: that oneDNN's kernels are
 * on, which TF_ENABLE_ONEDNN_OPTS=0 would silence by turning them off. So for the 20 ms
 * that the part of the library with that initialiser takes to load, descriptor 2 is a
 * file in memory; what others have written there meanwhile is written out afterwards.
 * (Exchanging C's `stderr` instead isn't enough: the C++ library's std::cerr would be
 * made of it for good.)
 *
 * Before 2.21 only a part of the library reads the level: absl is told it by a
 * function. (Up to 2.18 there is a second absl in it, XLA's, which can't be told: a few
 * lines come when something is compiled.)
 */
#ifndef PAML_TF_QUIET_H
#define PAML_TF_QUIET_H

#include <stdbool.h>

struct paml_tf_quiet {
    bool set_level;
    int stderr_before, captured; /* descriptors; -1: nothing is captured */
};

/* Around the loading of the part with the initialiser. Thread: any, one at a time. (Of
   all functions here.) */
void paml_tf_quiet_begin(struct paml_tf_quiet *quiet);
void paml_tf_quiet_end(struct paml_tf_quiet *quiet);
/* After that, once all is loaded: `library` is what dlopen() gave, or NULL where it
   gave none; `minor` is of its version 2. */
void paml_tf_quiet_stays(const struct paml_tf_quiet *quiet, void *library, int minor);

#endif
