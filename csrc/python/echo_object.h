/* The Python handle of an echo script (backends/echo.h): what tests hold on to. */
#ifndef PAML_ECHO_OBJECT_H
#define PAML_ECHO_OBJECT_H

#include "echo.h"
#include "state.h"

struct paml_echo *paml_echo_of_script(PyObject *script);

#endif
