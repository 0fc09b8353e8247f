// A card's threads as fibres of one CPU thread, so that g++ can run the text of a CUDA kernel: blocks one after the other,
// threads in order or in reverse until each waits for others. It stops with a reason where the text would be undefined:
// barriers that some threads never reach, and reads of shared memory that nobody wrote are NaN. Vectors that do not lie as
// they must are trapped by -fsanitize=alignment, what is outside of a tensor by pages that may not be touched.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared")))

extern "C" char __start_shared[] __attribute__((weak)), __stop_shared[] __attribute__((weak));

struct Place { unsigned x, y, z; };
static Place threadIdx, blockIdx, blockDim, gridDim;

namespace host {

enum State { READY, AT_WARP, AT_BLOCK, DONE };

struct Fibre {
    ucontext_t context;
    State state;
    float offered;
};

static const size_t STACK = 1 << 16;
static ucontext_t scheduler;
static std::vector<Fibre> fibres;
static std::function<void()> program;
static bool is_reversed = false;

inline void stop(const char* reason)
{
    std::fprintf(stderr, "cuda_on_host: %s in block (%u, %u)\n", reason, blockIdx.x, blockIdx.y);
    std::abort();
}

inline void wait(State state)
{
    Fibre& mine = fibres[threadIdx.x];
    mine.state = state;
    swapcontext(&mine.context, &scheduler);
}

inline void enter()
{
    program();
    fibres[threadIdx.x].state = DONE;
}

inline bool all(size_t from, size_t to, State state)
{
    return std::all_of(fibres.begin() + from, fibres.begin() + to, [=](const Fibre& f) { return f.state == state; });
}

// Lets those go on whose partners have all arrived; false where none can.
inline bool release()
{
    const size_t count = fibres.size();
    if (all(0, count, AT_BLOCK)) {
        for (Fibre& fibre : fibres) fibre.state = READY;
        return true;
    }
    bool any = false;
    for (size_t from = 0; from < count; from += 32) {
        const size_t to = std::min(from + 32, count);
        if (!all(from, to, AT_WARP)) continue;
        for (size_t i = from; i < to; ++i) fibres[i].state = READY;
        any = true;
    }
    return any;
}

inline void run_block(std::vector<char>& stacks)
{
    if (__start_shared) std::memset(__start_shared, 0xff, __stop_shared - __start_shared);  // NaN
    const size_t count = fibres.size();
    for (size_t i = 0; i < count; ++i) {
        Fibre& fibre = fibres[i];
        fibre.state = READY;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = &stacks[i * STACK];
        fibre.context.uc_stack.ss_size = STACK;
        fibre.context.uc_link = &scheduler;
        makecontext(&fibre.context, enter, 0);
    }
    do {
        for (size_t turn = 0; turn < count; ++turn) {
            const size_t i = is_reversed ? count - 1 - turn : turn;
            if (fibres[i].state != READY) continue;
            threadIdx.x = i;
            swapcontext(&scheduler, &fibres[i].context);
        }
    } while (release());
    if (!all(0, count, DONE)) stop("threads wait for a barrier that others never reach");
}

inline void run_grid(Place grid, Place block, std::function<void()> body)
{
    gridDim = grid, blockDim = block, program = body;
    fibres.resize(block.x);
    static std::vector<char> stacks;
    stacks.resize(std::max(stacks.size(), block.x * STACK));
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(stacks);
}

// Calls a kernel as the driver does: a pointer to each argument.
template <typename... A, size_t... I>
void call(void (*kernel)(A...), void** given, std::index_sequence<I...>)
{
    kernel(*static_cast<A*>(given[I])...);
}

struct Entry {
    const char* name;
    std::function<void(void**)> call;
};
static std::vector<Entry> entries;

template <typename... A> struct Registered {
    Registered(const char* name, void (*kernel)(A...))
    {
        entries.push_back({name, [=](void** given) { call(kernel, given, std::index_sequence_for<A...>()); }});
    }
};
template <typename... A> Registered(const char*, void (*)(A...)) -> Registered<A...>;

}  // namespace host

inline void __syncthreads() { host::wait(host::AT_BLOCK); }
inline void __syncwarp() { host::wait(host::AT_WARP); }

inline float __shfl_xor_sync(unsigned mask, float x, int step)
{
    if (mask != 0xffffffffu) host::stop("a shuffle without all of its warp");
    const unsigned mine = threadIdx.x;
    host::fibres[mine].offered = x;
    __syncwarp();
    const float found = host::fibres[mine ^ step].offered;
    __syncwarp();
    return found;
}

inline float __uint_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline unsigned __float_as_uint(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }

inline float half_to_float(unsigned short bits)
{
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float size = std::ldexp(exponent ? 1024.0f + mantissa : mantissa, std::max(exponent, 1) - 25);
    if (exponent == 31) size = mantissa ? NAN : INFINITY;
    return bits & 0x8000 ? -size : size;
}

inline unsigned short float_to_half(float x)
{
    const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
    const float size = std::fabs(x);
    if (x != x) return 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;
    const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
    return sign | (((exponent + 14) << 10) + (int)std::nearbyint(std::ldexp(size, 10 - exponent)));
}

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// The driver's functions, by its names, for what is compiled into this library.
extern "C" {

int cuCtxGetCurrent(void** context)
{
    *context = (void*)1;
    return 0;
}

int cuModuleLoadData(void** module, const void*)
{
    *module = (void*)1;
    return 0;
}

int cuModuleGetFunction(void** function, void*, const char* name)
{
    for (host::Entry& entry : host::entries)
        if (!std::strcmp(entry.name, name)) {
            *function = &entry;
            return 0;
        }
    return 500;
}

int cuGetErrorString(int, const char** words)
{
    *words = "named symbol not found";
    return 0;
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void*, void** given, void**)
{
    if (gz != 1 || by != 1 || bz != 1 || shared || gx == 0 || gy == 0 || gy > 65535 || bx > 1024 || bx % 32) return 1;
    auto* entry = static_cast<host::Entry*>(function);
    host::run_grid({gx, gy, 1}, {bx, 1, 1}, [=] { entry->call(given); });
    return 0;
}

void host_reverse(int is_reversed) { host::is_reversed = is_reversed; }

}  // extern "C"
