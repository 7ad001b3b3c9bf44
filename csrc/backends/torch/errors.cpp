#include "errors.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include <c10/util/Exception.h>

namespace pyasyncml {
namespace {

std::string_view
trim(std::string_view text)
{
    const size_t begin = text.find_first_not_of(" \t\r\n");
    if (begin == std::string_view::npos) {
        return {};
    }
    return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

std::vector<std::string_view>
lines_of(std::string_view text)
{
    std::vector<std::string_view> lines;
    while (!text.empty()) {
        const size_t end = std::min(text.find('\n'), text.size());
        lines.push_back(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return lines;
}

/* Drops "Exception raised from f at file:line (most recent call first): frame #0 …". */
std::string_view
without_backtrace(std::string_view text)
{
    return text.substr(0, text.find("\nException raised from "));
}

/* "[enforce fail at file.cc:1] condition. What failed" -> "What failed", also behind
   the "RuntimeError: " that the interpreter writes first. */
std::string
without_enforce(const std::string &text)
{
    const size_t begin = text.find("[enforce fail at ");
    const size_t bracket = text.find("] ", begin);
    if (begin == std::string::npos || bracket == std::string::npos) {
        return text;
    }
    const size_t end = text.find(". ", bracket);
    return end == std::string::npos ? text
                                    : text.substr(0, begin) + text.substr(end + 2);
}

/* The interpreter rethrows what a kernel threw as a plain runtime_error, so that the
   type is gone and only the words tell. */
bool
speaks_of_memory(std::string_view text)
{
    for (const char *words : {"can't allocate memory", "not enough memory",
                              "out of memory", "std::bad_alloc"}) {
        if (text.find(words) != std::string_view::npos) {
            return true;
        }
    }
    return false;
}

/* `  File "code/x.py", line 3, in forward` -> `code/x.py:3, in forward` */
std::string
place_of(std::string_view line)
{
    const size_t number = line.find(", line ");
    const size_t function = line.find(", in ");
    if (number == std::string_view::npos || function == std::string_view::npos ||
        function < number) {
        return {};
    }
    const std::string_view file = trim(line.substr(0, number)); /* File "…" */
    const size_t quote = file.find('"');
    return std::string(file.substr(quote + 1, file.size() - quote - 2)) + ":" +
           std::string(line.substr(number + 7, function - number - 7)) + ", in " +
           std::string(trim(line.substr(function + 5)));
}

/* Traced programs carry Python's frames instead, the innermost first:
   `torch/nn/modules/linear.py(134): forward` ->
   `torch/nn/modules/linear.py:134, in forward`; else empty. */
std::string
traced_place_of(std::string_view line)
{
    const size_t end = line.find("): ");
    const size_t begin = line.substr(0, end).rfind('(');
    if (end == std::string_view::npos || begin == std::string_view::npos ||
        begin + 1 == end ||
        line.substr(begin + 1, end - begin - 1).find_first_not_of("0123456789") !=
            std::string_view::npos) {
        return {};
    }
    return std::string(trim(line.substr(0, begin))) + ":" +
           std::string(line.substr(begin + 1, end - begin - 1)) + ", in " +
           std::string(trim(line.substr(end + 3)));
}

int
fill(struct paml_error *err, int code, const std::string &message) noexcept
{
    return paml_fail(err, code, "%s", message.c_str());
}

} // namespace

std::string
first_line(std::string_view message)
{
    message = trim(message);
    return without_enforce(std::string(trim(message.substr(0, message.find('\n')))));
}

std::string
shorten(std::string_view message)
{
    message = without_backtrace(message);
    const std::vector<std::string_view> lines = lines_of(message);
    std::string place, source;
    size_t rest = 0;

    /* Innermost frames come last, and the original code after the serialized one. */
    for (size_t i = 0; i < lines.size(); i++) {
        if (trim(lines[i]).starts_with("File \"")) {
            place = place_of(lines[i]);
        } else if (lines[i].find("<--- HERE") != std::string_view::npos) {
            source = i > 0 ? std::string(trim(lines[i - 1])) : std::string();
            rest = i + 1;
        } else if (lines[i].starts_with("Traceback of TorchScript")) {
            rest = i + 1;
        }
    }
    /* The marked line may be followed by more of the source, indented. */
    while (rest > 0 && rest < lines.size()) {
        const std::string traced = traced_place_of(lines[rest]);
        if (!traced.empty()) {
            place = source.empty() ? traced : place;
            source = source.empty() ? "traced" : source;
        } else if (!lines[rest].empty() && lines[rest][0] != ' ') {
            break;
        }
        rest++;
    }
    std::string text;
    for (size_t i = rest; i < lines.size(); i++) {
        const std::string_view line = trim(lines[i]);
        if (!line.empty()) {
            text += (text.empty() ? "" : "\n");
            text += line;
        }
    }
    if (text.empty()) {
        return without_enforce(std::string(trim(message)));
    }
    if (text.starts_with("builtins.")) {
        text.erase(0, strlen("builtins."));
    }
    text = without_enforce(text);
    if (!place.empty() && !source.empty()) {
        text += " (" + place + ": " + source + ")";
    }
    return text;
}

std::string
current_message()
{
    try {
        throw;
    } catch (const c10::Error &error) {
        return error.what_without_backtrace();
    } catch (const std::exception &error) {
        return std::string(without_backtrace(error.what()));
    } catch (...) {
        return "an exception that is no std::exception";
    }
}

int
report(struct paml_error *err, int code) noexcept
{
    try {
        try {
            throw;
        } catch (const Failure &failure) {
            return fill(err, failure.code, failure.what());
        } catch (const std::bad_alloc &) {
            return fill(err, PAML_ERR_MEMORY, "host memory ran out");
        } catch (const c10::OutOfMemoryError &error) {
            return fill(err, PAML_ERR_MEMORY,
                        first_line(error.what_without_backtrace()));
        } catch (...) {
            const std::string message = shorten(current_message());
            return fill(err, speaks_of_memory(message) ? PAML_ERR_MEMORY : code,
                        message);
        }
    } catch (...) {
        /* No memory for the message itself. */
        return paml_fail(err, PAML_ERR_MEMORY, "host memory ran out");
    }
}

} // namespace pyasyncml
