/* TensorFlow says on stderr that it is there, and what it reads. It isn't asked to,
 * unless PYASYNCML_LOG=debug asks.
 *
 * Its log level comes from the environment, when its library is loaded. One message
 * comes before even that is read, from a static initialiser: that oneDNN's kernels are
 * on, which TF_ENABLE_ONEDNN_OPTS=0 would silence by turning them off. So for as long as
 * the library loads, C's `stderr`, a variable in the GNU C library, is a piece of
 * memory; what others have written there meanwhile is written out afterwards. Python's
 * sys.stderr and all that write to descriptor 2 notice nothing.
 */
#ifndef PAML_TF_QUIET_H
#define PAML_TF_QUIET_H

#include <stdbool.h>
#include <stdio.h>

struct paml_tf_quiet {
    bool active, set_level;
    FILE *stderr_before, *captured;
    char *text;
    size_t size;
};

/* Around the loading of the library. Thread: any, one at a time. */
void paml_tf_quiet_begin(struct paml_tf_quiet *quiet);
void paml_tf_quiet_end(struct paml_tf_quiet *quiet);

#endif
