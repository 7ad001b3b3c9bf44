/* What leaves the shim when something fails: a code and a short message.
 *
 * Inside, everything throws; at the boundary (backend.cpp) `report` turns whatever was
 * thrown into a struct paml_error. LibTorch's own messages carry a C++ backtrace and a
 * TorchScript traceback of dozens of lines; what remains of them is the error and the
 * line of the model that raised it.
 */
#ifndef PAML_TORCH_ERRORS_H
#define PAML_TORCH_ERRORS_H

#include <stdexcept>
#include <string>
#include <string_view>

#include "error.h"

namespace pyasyncml {

/* An error of ours, with the code it travels under. */
struct Failure : std::runtime_error {
    Failure(int code, const std::string &message)
        : std::runtime_error(message), code(code)
    {
    }
    int code;
};

/* Thread: any. To be called in a catch block: fills err from the exception in flight
   and returns its code; `code` is for what the framework threw. */
int report(struct paml_error *err, int code) noexcept;

/* "RuntimeError: … (forward, line 3: return self.l(x))" out of a TorchScript
   traceback; any other text comes back without its C++ backtrace. */
std::string shorten(std::string_view message);

/* The first line with something on it. */
std::string first_line(std::string_view message);

/* The message of the exception in flight, without its C++ backtrace. */
std::string current_message();

} // namespace pyasyncml
#endif
