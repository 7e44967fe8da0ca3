/* A CUDA driver that is none: what NVIDIA's bindings need of libcuda.so.1 to capture, launch and fail, in host memory.

   The bindings ask cuGetProcAddress for every function by name; those that are not here answer "not supported". A
   captured copy is done when its graph is launched. `sticky_error`, set by a test, is the answer to every call. */
#include <stddef.h>
#include <string.h>

typedef int result;
enum { success = 0, invalid_value = 1, invalid_context = 201, not_supported = 801 };

int sticky_error;
static int is_current, is_capturing, copies, graph, executable;
static struct { void *to; const void *from; size_t size; } recorded[16];

#define CHECK() do { if (!is_current) return invalid_context; if (sticky_error) return sticky_error; } while (0)

static result init(unsigned flags) { return flags ? invalid_value : success; }
static result version(int *number) { *number = 13000; return success; }
static result count(int *number) { *number = 1; return success; }
static result device(int *handle, int ordinal) { *handle = ordinal; return success; }
static result name(char *text, int length, int handle) { strncpy(text, "Host memory", (size_t)length); return success; }
static result attribute(int *value, int which, int handle) { *value = which == 75 ? 8 : which == 76 ? 7 : 0; return success; }
static result push(void *context) { is_current = 1; return success; }
static result pop(void **context) { *context = NULL; is_current = 0; return success; }
static result memory(size_t *unused, size_t *all) { CHECK(); *unused = 1; *all = 2; return success; }
static result synchronize(void *stream) { CHECK(); return success; }
static result copy(unsigned long long to, const void *from, size_t size, void *stream) {
    CHECK();
    if (!is_capturing) {
        memcpy((void *)(size_t)to, from, size);
        return success;
    }
    recorded[copies].to = (void *)(size_t)to;
    recorded[copies].from = from;
    recorded[copies++].size = size;
    return success;
}
static result begin(void *stream, int mode) { CHECK(); copies = 0; is_capturing = 1; return mode == 1 ? success : invalid_value; }
static result end(void *stream, void **captured) { CHECK(); is_capturing = 0; *captured = &graph; return success; }
static result instantiate(void **made, void *captured, unsigned long long flags) {
    CHECK();
    *made = &executable;
    return captured == &graph && flags == 0 ? success : invalid_value;
}
static result upload(void *made, void *stream) { CHECK(); return made == &executable ? success : invalid_value; }
static result launch(void *made, void *stream) {
    CHECK();
    if (made != &executable || stream != (void *)0x10) return invalid_value;
    for (int index = 0; index < copies; index++) memcpy(recorded[index].to, recorded[index].from, recorded[index].size);
    return success;
}
static result destroy(void *captured) { CHECK(); return captured == &graph ? success : invalid_value; }
static result destroy_executable(void *made) { CHECK(); return made == &executable ? success : invalid_value; }
static result unknown(void) { return not_supported; }

result cuGetProcAddress_v2(const char *asked, void **function, int cuda, unsigned long long flags, int *found) {
    static const struct { const char *name; void *function; } table[] = {
        {"cuGetProcAddress", (void *)cuGetProcAddress_v2},
        {"cuInit", (void *)init},
        {"cuDriverGetVersion", (void *)version},
        {"cuDeviceGetCount", (void *)count},
        {"cuDeviceGet", (void *)device},
        {"cuDeviceGetName", (void *)name},
        {"cuDeviceGetAttribute", (void *)attribute},
        {"cuCtxPushCurrent", (void *)push},
        {"cuCtxPopCurrent", (void *)pop},
        {"cuMemGetInfo", (void *)memory},
        {"cuMemcpyHtoDAsync", (void *)copy},
        {"cuStreamSynchronize", (void *)synchronize},
        {"cuStreamBeginCapture", (void *)begin},
        {"cuStreamEndCapture", (void *)end},
        {"cuGraphInstantiate", (void *)instantiate},
        {"cuGraphInstantiateWithFlags", (void *)instantiate},
        {"cuGraphUpload", (void *)upload},
        {"cuGraphLaunch", (void *)launch},
        {"cuGraphDestroy", (void *)destroy},
        {"cuGraphExecDestroy", (void *)destroy_executable},
    };
    *function = (void *)unknown;
    for (size_t index = 0; index < sizeof table / sizeof *table; index++)
        if (strcmp(table[index].name, asked) == 0) *function = table[index].function;
    if (found) *found = 0;
    return success;
}

result cuGetProcAddress(const char *asked, void **function, int cuda, unsigned long long flags) {
    return cuGetProcAddress_v2(asked, function, cuda, flags, NULL);
}
