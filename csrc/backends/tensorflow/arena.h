/* Many small pieces of memory that are freed together. One thread's at a time. */
#ifndef PAML_TF_ARENA_H
#define PAML_TF_ARENA_H

#include <stdbool.h>
#include <stddef.h>

struct paml_tf_arena {
    void *blocks; /* each begins with a pointer to the next */
    bool failed;  /* memory ran out: what was made since isn't to be used */
};

/* Zeroed. NULL when memory ran out, which the arena remembers. */
void *paml_tf_arena_new(struct paml_tf_arena *arena, size_t count, size_t size);
/* A terminated copy. */
char *paml_tf_arena_text(struct paml_tf_arena *arena, const char *bytes, size_t size);
void paml_tf_arena_free(struct paml_tf_arena *arena);

#endif
