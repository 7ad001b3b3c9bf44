/* The process's worker threads: started here, joined here, counted here.
 *
 * Nobody waits for a worker while work runs. A worker says when it is about to return;
 * paml_threads_reap() joins those, which takes microseconds. At exit everyone is waited
 * for. A forked child has none of the parent's threads, and its frameworks hang:
 * paml_threads_forked() tells.
 */
#ifndef PAML_THREAD_H
#define PAML_THREAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Starts a thread that blocks all signals (the main thread handles them). Returns 0 or
   an errno value. `name` shows in debuggers, 15 characters of it. */
int paml_thread_start(void (*main)(void *), void *argument, const char *name);

/* The last thing a thread calls before its main returns. */
void paml_thread_leaving(void);

/* Joins the threads that are leaving. Thread: any; may block for microseconds. */
void paml_threads_reap(void);

/* Waits until no thread is left or the moment has come. True: none is left. */
bool paml_threads_join(int64_t until_ns);

/* In a child forked from a process that had started workers. */
bool paml_threads_forked(void);

#endif
