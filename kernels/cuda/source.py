"""What the text of every kernel begins with: number formats, reads and writes in vectors, sums of a warp and a block.

No header is included: cuda_bf16.h and cuda_fp16.h belong to the toolkit, which NVRTC does not bring. Numbers of 16 bits
are taken as bits, and all arithmetic is float32.
"""

# What only a card can do; the tests compile the rest for the CPU, with their own of these.
HARDWARE = r"""
__device__ inline float half_to_float(unsigned short bits)
{
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

__device__ inline unsigned short float_to_half(float x)
{
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// 1 / (1 + exp(-x)) by the card's own power of two and reciprocal, each right to 2^-22: a third fewer instructions.
__device__ inline float sigmoid(float x)
{
    float power, share;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.44269504f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(share) : "f"(1.0f + power));
    return share;
}
"""

PRELUDE = r"""
struct fp16 { unsigned short bits; };
struct bf16 { unsigned short bits; };

__device__ inline float number(float x) { return x; }
__device__ inline float number(fp16 x) { return half_to_float(x.bits); }
__device__ inline float number(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ inline void round_to(float& y, float x) { y = x; }
__device__ inline void round_to(fp16& y, float x) { y.bits = float_to_half(x); }
__device__ inline void round_to(bf16& y, float x)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    // To the nearest, ties to even; the sum would carry what is no number into infinity.
    const unsigned bits = __float_as_uint(x);
    y.bits = x != x ? 0x7fff : (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
}

template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack { T of[N]; };

// N entries that lie as Pack asks, so that they are read 16 bytes at a time where there are as many.
template <typename T, int N> __device__ inline void read(const T* from, float (&x)[N])
{
    const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = number(pack.of[i]);
}

template <typename T, int N> __device__ inline void write(T* to, const float (&x)[N])
{
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) round_to(pack.of[i], x[i]);
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// The sum over LANES threads side by side, a power of two up to a warp's 32; all of the warp take part.
template <int LANES> __device__ inline float sum_of_team(float x)
{
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// The sum over the block, the same bits in every thread; ``sums`` is shared, a place for each warp, and used once.
template <int THREADS> __device__ inline float sum_of_block(float x, float* sums)
{
    x = sum_of_team<32>(x);
    if (THREADS == 32) return x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) sums[warp] = x;
    __syncthreads();
    return sum_of_team<32>(lane < THREADS / 32 ? sums[lane] : 0.0f);
}
"""
