/* What ONNX Runtime says went wrong, as a code and a message of ours.
 *
 * Thread: any. GIL: not needed.
 */
#ifndef PAML_ORT_STATUS_H
#define PAML_ORT_STATUS_H

#include "library.h"

/* Fills err, releases the status (not NULL) and returns the code: that for memory or
   for wrong inputs where the message tells so, else `code`. */
int ort_fail(OrtStatus *status, int code, struct paml_error *err);

/* Releases a status that nobody needs to know; NULL is well. */
void ort_ignore(OrtStatus *status);

#endif
