#include "quiet.h"

#include <stdlib.h>
#include <string.h>

#define LEVEL "TF_CPP_MIN_LOG_LEVEL"

static bool
wants_messages(void)
{
    const char *log = getenv("PYASYNCML_LOG");

    return log != NULL && strcmp(log, "debug") == 0;
}

void
paml_tf_quiet_begin(struct paml_tf_quiet *quiet)
{
    memset(quiet, 0, sizeof(*quiet));
    quiet->active = !wants_messages();
    if (!quiet->active) {
        return;
    }
    quiet->set_level = getenv(LEVEL) == NULL && setenv(LEVEL, "3", 0) == 0;
    quiet->captured = open_memstream(&quiet->text, &quiet->size);
    if (quiet->captured != NULL) {
        quiet->stderr_before = stderr;
        stderr = quiet->captured;
    }
}

static bool
is_announcement(const char *line, size_t size)
{
    static const char *const parts[] = {"absl::InitializeLog()", "TF_ENABLE_ONEDNN_OPTS"};

    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (memmem(line, size, parts[i], strlen(parts[i])) != NULL) {
            return true;
        }
    }
    return false;
}

void
paml_tf_quiet_end(struct paml_tf_quiet *quiet)
{
    const char *line, *end;

    if (!quiet->active) {
        return;
    }
    if (quiet->set_level) {
        unsetenv(LEVEL); /* it has been read; what we start needn't inherit it */
    }
    if (quiet->captured == NULL) {
        return;
    }
    stderr = quiet->stderr_before;
    /* Flushed, not closed: another thread may be about to write there. */
    fflush(quiet->captured);
    end = quiet->text + quiet->size;
    for (line = quiet->text; line < end;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t size = (size_t)((newline != NULL ? newline + 1 : end) - line);
        if (!is_announcement(line, size)) {
            fwrite(line, 1, size, stderr);
        }
        line += size;
    }
}
