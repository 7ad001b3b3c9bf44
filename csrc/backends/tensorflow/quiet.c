#include "quiet.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LEVEL "TF_CPP_MIN_LOG_LEVEL"

/* absl::log_internal::RawSetMinLogLevel(absl::LogSeverityAtLeast), whose namespace has
   the name of absl's version. */
static const char *const setters[] = {
    "_ZN4absl12lts_2023080212log_internal17" /* TensorFlow 2.16 to 2.19 */
    "RawSetMinLogLevelENS0_18LogSeverityAtLeastE",
    "_ZN4absl12lts_2025012712log_internal17" /* 2.20 */
    "RawSetMinLogLevelENS0_18LogSeverityAtLeastE",
};
#define FATAL 3 /* of absl::LogSeverityAtLeast */

/* Up to here there are messages that don't pass through absl, and the level of those is
   read with the first of them, which may come at any time. */
#define LAST_TO_READ_LATE 18

static bool
wants_messages(void)
{
    const char *log = getenv("PYASYNCML_LOG");

    return log != NULL && strcmp(log, "debug") == 0;
}

void
paml_tf_quiet_begin(struct paml_tf_quiet *quiet)
{
    *quiet = (struct paml_tf_quiet){false, -1, -1};
    if (wants_messages()) {
        return;
    }
    quiet->set_level = getenv(LEVEL) == NULL && setenv(LEVEL, "3", 0) == 0;
    fflush(stderr);
    quiet->captured = memfd_create("pyasyncml", MFD_CLOEXEC);
    quiet->stderr_before = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    if (quiet->captured < 0 || quiet->stderr_before < 0 ||
        dup2(quiet->captured, STDERR_FILENO) < 0) {
        close(quiet->captured);
        close(quiet->stderr_before);
        quiet->captured = quiet->stderr_before = -1;
    }
}

static bool
is_announcement(const char *line, size_t size)
{
    static const char *const parts[] = {"absl::InitializeLog()",
                                        "TF_ENABLE_ONEDNN_OPTS"};

    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (memmem(line, size, parts[i], strlen(parts[i])) != NULL) {
            return true;
        }
    }
    return false;
}

/* Writes out what isn't TensorFlow's announcement. */
static void
replay(int captured)
{
    struct stat about;
    char *text, *line, *end;
    ssize_t size = 0;

    if (fstat(captured, &about) < 0 || about.st_size == 0 ||
        (text = malloc((size_t)about.st_size)) == NULL) {
        return;
    }
    size = pread(captured, text, (size_t)about.st_size, 0);
    end = text + (size > 0 ? size : 0);
    for (line = text; line < end;) {
        char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t length = (size_t)((newline != NULL ? newline + 1 : end) - line);
        if (!is_announcement(line, length) && write(STDERR_FILENO, line, length) < 0) {
            break;
        }
        line += length;
    }
    free(text);
}

void
paml_tf_quiet_end(struct paml_tf_quiet *quiet)
{
    if (quiet->captured >= 0) {
        fflush(stderr);
        dup2(quiet->stderr_before, STDERR_FILENO);
        replay(quiet->captured);
        close(quiet->captured);
        close(quiet->stderr_before);
    }
}

void
paml_tf_quiet_stays(const struct paml_tf_quiet *quiet, void *library, int minor)
{
    void (*set_level)(int);
    void *symbol;

    if (!quiet->set_level) {
        return;
    }
    for (size_t i = 0; library != NULL && i < sizeof(setters) / sizeof(setters[0]);
         i++) {
        symbol = dlsym(library, setters[i]);
        if (symbol != NULL) {
            memcpy(&set_level, &symbol, sizeof(symbol));
            set_level(FATAL);
        }
    }
    if (library == NULL || minor > LAST_TO_READ_LATE) {
        unsetenv(LEVEL); /* it has been read; what we start needn't inherit it */
    }
}
