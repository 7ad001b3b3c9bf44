/* What is used of the PJRT C API, the interface that every XLA plugin exports.
 *
 * Its table of functions and its argument structs are append-only, and each begins with
 * its size: a plugin that is newer knows more, one that is older is refused by the
 * size of its table (plugin.c). So the slots and members used are declared here, in the
 * order of the public header xla/pjrt/c/pjrt_c_api.h, and no header is needed.
 *
 * A function returns NULL, or an error that the caller destroys.
 */
#ifndef PAML_XLA_PJRT_H
#define PAML_XLA_PJRT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PJRT_MAJOR 0

struct pjrt_error;
struct pjrt_event;
struct pjrt_client;
struct pjrt_device;
struct pjrt_description;
struct pjrt_executable;
struct pjrt_loaded;
struct pjrt_buffer;

typedef struct pjrt_error *pjrt_call(void *args);

/* The places in the table, counted from its first function. */
enum pjrt_slot {
    PJRT_ERROR_DESTROY = 0, /* returns nothing */
    PJRT_ERROR_MESSAGE = 1, /* returns nothing */
    PJRT_ERROR_GET_CODE = 2,
    PJRT_PLUGIN_INITIALIZE = 3,
    PJRT_EVENT_DESTROY = 5,
    PJRT_EVENT_ON_READY = 9,
    PJRT_CLIENT_CREATE = 10,
    PJRT_CLIENT_DESTROY = 11,
    PJRT_CLIENT_PLATFORM_NAME = 12,
    PJRT_CLIENT_PLATFORM_VERSION = 14,
    PJRT_CLIENT_ADDRESSABLE_DEVICES = 16,
    PJRT_CLIENT_COMPILE = 20,
    PJRT_CLIENT_BUFFER_FROM_HOST_BUFFER = 22,
    PJRT_DESCRIPTION_KIND = 26,
    PJRT_DEVICE_GET_DESCRIPTION = 29,
    PJRT_DEVICE_MEMORY_STATS = 34,
    PJRT_EXECUTABLE_DESTROY = 40,
    PJRT_EXECUTABLE_NUM_OUTPUTS = 44,
    PJRT_LOADED_DESTROY = 50,
    PJRT_LOADED_GET_EXECUTABLE = 51,
    PJRT_LOADED_EXECUTE = 55,
    PJRT_BUFFER_DESTROY = 58,
    PJRT_BUFFER_TO_HOST_BUFFER = 70,
    PJRT_EXECUTABLE_OUTPUT_ELEMENT_TYPES = 90,
    PJRT_EXECUTABLE_OUTPUT_DIMENSIONS = 91,
    PJRT_SLOTS_NEEDED = 92,
};

struct pjrt_api {
    size_t struct_size;
    void *extensions;
    struct {
        size_t struct_size;
        void *extensions;
        int major, minor;
    } version;
    pjrt_call *slots[];
};

enum pjrt_code {
    PJRT_INVALID_ARGUMENT = 3,
    PJRT_RESOURCE_EXHAUSTED = 8,
    PJRT_UNIMPLEMENTED = 12,
};

enum pjrt_type {
    PJRT_PRED = 1,
    PJRT_S8,
    PJRT_S16,
    PJRT_S32,
    PJRT_S64,
    PJRT_U8,
    PJRT_U16,
    PJRT_U32,
    PJRT_U64,
    PJRT_F16,
    PJRT_F32,
    PJRT_F64,
    PJRT_BF16,
    PJRT_C64,
    PJRT_C128,
};

enum pjrt_host_buffer_semantics {
    PJRT_IMMUTABLE_ONLY_DURING_CALL,
    PJRT_IMMUTABLE_UNTIL_TRANSFER_COMPLETES,
    PJRT_IMMUTABLE_ZERO_COPY,
};

enum pjrt_named_value_type {
    PJRT_NAMED_STRING,
    PJRT_NAMED_INT64,
    PJRT_NAMED_INT64_LIST,
    PJRT_NAMED_FLOAT,
    PJRT_NAMED_BOOL,
};

struct pjrt_named_value {
    size_t struct_size;
    void *extensions;
    const char *name;
    size_t name_size;
    enum pjrt_named_value_type type;
    union {
        const char *string;
        int64_t integer;
        float real;
        bool boolean;
    };
    size_t value_size; /* of a string; else 1 */
};

/* --- arguments, each named after its slot --- */

struct pjrt_error_destroy {
    size_t struct_size;
    void *extensions;
    struct pjrt_error *error;
};

struct pjrt_error_message {
    size_t struct_size;
    void *extensions;
    const struct pjrt_error *error;
    const char *message; /* out; lives as long as the error */
    size_t message_size; /* out */
};

struct pjrt_error_get_code {
    size_t struct_size;
    void *extensions;
    const struct pjrt_error *error;
    int code; /* out */
};

struct pjrt_plugin_initialize {
    size_t struct_size;
    void *extensions;
};

struct pjrt_event_destroy {
    size_t struct_size;
    void *extensions;
    struct pjrt_event *event;
};

struct pjrt_event_on_ready {
    size_t struct_size;
    void *extensions;
    struct pjrt_event *event;
    /* Called once, on whatever thread, perhaps before the call that sets it returns.
       Owns the error. */
    void (*callback)(struct pjrt_error *error, void *argument);
    void *argument;
};

struct pjrt_client_create {
    size_t struct_size;
    void *extensions;
    const struct pjrt_named_value *options;
    size_t n_options;
    void *kv_get, *kv_get_argument, *kv_put, *kv_put_argument;
    struct pjrt_client *client; /* out */
    void *kv_try_get, *kv_try_get_argument;
};

struct pjrt_client_destroy {
    size_t struct_size;
    void *extensions;
    struct pjrt_client *client;
};

struct pjrt_client_text { /* platform name, platform version */
    size_t struct_size;
    void *extensions;
    struct pjrt_client *client;
    const char *text; /* out; the client's */
    size_t text_size; /* out */
};

struct pjrt_client_devices {
    size_t struct_size;
    void *extensions;
    struct pjrt_client *client;
    struct pjrt_device *const *devices; /* out; the client's */
    size_t n_devices;                   /* out */
};

struct pjrt_program {
    size_t struct_size;
    void *extensions;
    const char *code;
    size_t code_size;
    const char *format;
    size_t format_size;
};

struct pjrt_client_compile {
    size_t struct_size;
    void *extensions;
    struct pjrt_client *client;
    const struct pjrt_program *program;
    const char *options; /* a serialised CompileOptionsProto */
    size_t options_size;
    struct pjrt_loaded *executable; /* out */
};

struct pjrt_layout {
    size_t struct_size;
    void *extensions;
    union {
        struct {
            size_t struct_size;
            void *extensions;
            const int64_t *minor_to_major;
            size_t n_minor_to_major;
            const int64_t *tile_dims;
            const size_t *tile_dim_sizes;
            size_t n_tiles;
        } tiled;
        struct {
            size_t struct_size;
            void *extensions;
            const int64_t *byte_strides;
            size_t n_byte_strides;
        } strides;
    };
    int type; /* 0: tiled */
};

struct pjrt_buffer_from_host_buffer {
    size_t struct_size;
    void *extensions;
    struct pjrt_client *client;
    const void *data;
    enum pjrt_type type;
    const int64_t *dims;
    size_t n_dims;
    const int64_t *byte_strides; /* NULL: dense, the last axis fastest */
    size_t n_byte_strides;
    enum pjrt_host_buffer_semantics semantics;
    struct pjrt_device *device;
    void *memory;
    struct pjrt_layout *device_layout;
    struct pjrt_event *done_with_host_buffer; /* out */
    struct pjrt_buffer *buffer;               /* out */
};

struct pjrt_description_kind {
    size_t struct_size;
    void *extensions;
    struct pjrt_description *description;
    const char *kind; /* out; the client's */
    size_t kind_size; /* out */
};

struct pjrt_device_get_description {
    size_t struct_size;
    void *extensions;
    struct pjrt_device *device;
    struct pjrt_description *description; /* out */
};

struct pjrt_device_memory_stats {
    size_t struct_size;
    void *extensions;
    struct pjrt_device *device;
    int64_t bytes_in_use; /* this and all below: out */
    int64_t peak_bytes_in_use;
    bool peak_bytes_in_use_is_set;
    int64_t num_allocs;
    bool num_allocs_is_set;
    int64_t largest_alloc_size;
    bool largest_alloc_size_is_set;
    int64_t bytes_limit;
    bool bytes_limit_is_set;
    int64_t bytes_reserved;
    bool bytes_reserved_is_set;
    int64_t peak_bytes_reserved;
    bool peak_bytes_reserved_is_set;
    int64_t bytes_reservable_limit;
    bool bytes_reservable_limit_is_set;
    int64_t largest_free_block_bytes;
    bool largest_free_block_bytes_is_set;
    int64_t pool_bytes;
    bool pool_bytes_is_set;
    int64_t peak_pool_bytes;
    bool peak_pool_bytes_is_set;
};

struct pjrt_executable_destroy { /* loaded ones too */
    size_t struct_size;
    void *extensions;
    void *executable;
};

struct pjrt_executable_num_outputs {
    size_t struct_size;
    void *extensions;
    struct pjrt_executable *executable;
    size_t n_outputs; /* out */
};

struct pjrt_loaded_get_executable {
    size_t struct_size;
    void *extensions;
    struct pjrt_loaded *loaded;
    struct pjrt_executable *executable; /* out; the caller's to destroy */
};

struct pjrt_execute_options {
    size_t struct_size;
    void *extensions;
    void *send_callbacks, *receive_callbacks;
    size_t n_send, n_receive;
    int launch_id;
    const int64_t *non_donatable;
    size_t n_non_donatable;
    void *context;
    const char *call_location;
    size_t n_tasks;
    int *task_ids;
    int64_t *incarnation_ids;
};

struct pjrt_loaded_execute {
    size_t struct_size;
    void *extensions;
    struct pjrt_loaded *executable;
    struct pjrt_execute_options *options;
    struct pjrt_buffer *const *const *arguments; /* [device][argument] */
    size_t n_devices, n_arguments;
    struct pjrt_buffer **const *outputs; /* [device][output]; the arrays are ours */
    struct pjrt_event **complete;        /* [device]; out */
    struct pjrt_device *device;
};

struct pjrt_buffer_destroy {
    size_t struct_size;
    void *extensions;
    struct pjrt_buffer *buffer;
};

struct pjrt_buffer_to_host_buffer {
    size_t struct_size;
    void *extensions;
    struct pjrt_buffer *buffer;
    const struct pjrt_layout *layout; /* of the host's copy; NULL: as on the device */
    void *to;
    size_t to_size;
    struct pjrt_event *event; /* out */
};

struct pjrt_executable_output_types {
    size_t struct_size;
    void *extensions;
    struct pjrt_executable *executable;
    enum pjrt_type *types; /* out; the executable's */
    size_t n_types;        /* out */
};

struct pjrt_executable_output_dimensions {
    size_t struct_size;
    void *extensions;
    struct pjrt_executable *executable;
    size_t n_outputs;
    const int64_t *dims; /* out; of all outputs, one after the other */
    const size_t *ranks; /* out */
};

/* `PJRT_ARGS(client_compile, args);` declares the arguments of a call. */
#define PJRT_ARGS(type, name) struct pjrt_##type name = {.struct_size = sizeof(name)}

#endif
