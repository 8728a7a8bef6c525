// A CUDA runtime without a GPU, for LD_PRELOAD under PyTorch's CUDA build: allocations are real host
// address space (lazy pages), copies are memcpy, kernels and library calls are counted and do nothing.
// So PyTorch's own device checks, dispatch, autocast, caching allocator, streams and events are real;
// values on the "device" are not.
#include <driver_types.h>
#include <cstring>
#include <cstdlib>
#include <cstdint>
#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <vector>
#include <unordered_map>
#include <sys/mman.h>
#define X extern "C" __attribute__((visibility("default")))
typedef cudaError_t E;
static std::mutex mu;
static std::map<uintptr_t, size_t> dev, pinned;
static std::unordered_map<const void*, std::string>* names;
static std::unordered_map<std::string, long>* counts;
static thread_local int current = 0;
static int ndev() { const char* s = getenv("NULLGPU_DEVICES"); return s ? atoi(s) : 1; }
struct Stats { long launches, libcalls, sync_stream, sync_device, sync_event, h2d_pageable, h2d_pinned, d2h, d2d, memset, bytes_h2d, bytes_d2h, live, peak, allocs, frees; };
static Stats st;
X void nullgpu_stats(long* out) { std::lock_guard<std::mutex> g(mu); memcpy(out, &st, sizeof st); }
X void nullgpu_reset() { std::lock_guard<std::mutex> g(mu); long live = st.live; memset(&st, 0, sizeof st); st.live = st.peak = live; if (counts) counts->clear(); }
X void nullgpu_dump(const char* path) { std::lock_guard<std::mutex> g(mu); FILE* f = fopen(path, "w"); if (counts) for (auto& kv : *counts) fprintf(f, "%ld\t%s\n", kv.second, kv.first.c_str()); fclose(f); }
static void count(const std::string& n) { if (!counts) counts = new std::unordered_map<std::string, long>; (*counts)[n]++; }
X void nullgpu_lib(const char* n) { std::lock_guard<std::mutex> g(mu); st.libcalls++; count(std::string("lib:") + n); }
static bool in(std::map<uintptr_t, size_t>& m, const void* p) { auto it = m.upper_bound((uintptr_t)p); if (it == m.begin()) return false; --it; return (uintptr_t)p < it->first + it->second; }
// registration
struct Name { std::string s; };
X void** __cudaRegisterFatBinary(void*) { static void* h; return &h; }
X void __cudaRegisterFatBinaryEnd(void**) {}
X void __cudaUnregisterFatBinary(void**) {}
X void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
X void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) { std::lock_guard<std::mutex> g(mu); if (!names) names = new std::unordered_map<const void*, std::string>; (*names)[host] = name; }
struct Cfg { dim3 g, b; size_t s; void* st; };
static thread_local std::vector<Cfg> cfg;
X unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, void* stm) { cfg.push_back({g, b, s, stm}); return 0; }
X E __cudaPopCallConfiguration(dim3* g, dim3* b, size_t* s, void* stm) { Cfg c = cfg.back(); cfg.pop_back(); *g = c.g; *b = c.b; *s = c.s; *(void**)stm = c.st; return cudaSuccess; }
static void launch(const void* f) { std::lock_guard<std::mutex> g(mu); st.launches++; std::string n = "?"; if (names) { auto it = names->find(f); if (it != names->end()) n = it->second; } count(n); }
X E __cudaGetKernel(void** k, const void* f) { *k = (void*)f; return cudaSuccess; }
X E __cudaLaunchKernel(void* k, dim3, dim3, void**, size_t, void*) { launch(k); return cudaSuccess; }
X E cudaLaunchKernel(const void* f, dim3, dim3, void**, size_t, void*) { launch(f); return cudaSuccess; }
X E cudaLaunchKernelExC(const void*, const void* f, void**) { launch(f); return cudaSuccess; }
X E cudaLaunchCooperativeKernel(const void* f, dim3, dim3, void**, size_t, void*) { launch(f); return cudaSuccess; }
// device
X E cudaGetDeviceCount(int* n) { *n = ndev(); return cudaSuccess; }
X E cudaGetDevice(int* d) { *d = current; return cudaSuccess; }
X E cudaSetDevice(int d) { if (d >= ndev()) return cudaErrorInvalidDevice; current = d; return cudaSuccess; }
X E cudaDriverGetVersion(int* v) { *v = 13000; return cudaSuccess; }
X E cudaRuntimeGetVersion(int* v) { *v = 13000; return cudaSuccess; }
X E cudaGetDeviceProperties(cudaDeviceProp* p, int dev) { memset(p, 0, sizeof *p); p->uuid.bytes[15] = (char)dev; strcpy(p->name, "NULL H100"); p->totalGlobalMem = 80ull << 30; p->sharedMemPerBlock = 49152; p->regsPerBlock = 65536; p->warpSize = 32; p->maxThreadsPerBlock = 1024; p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64; p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535; p->major = 9; p->minor = 0; p->multiProcessorCount = 132; p->maxThreadsPerMultiProcessor = 2048; p->sharedMemPerMultiprocessor = 233472; p->regsPerMultiprocessor = 65536; p->sharedMemPerBlockOptin = 232448; p->l2CacheSize = 50 << 20; p->textureAlignment = 512; p->memoryBusWidth = 5120; p->maxBlocksPerMultiProcessor = 32; return cudaSuccess; }
X E cudaDeviceGetAttribute(int* v, int a, int) { switch (a) { case 75: *v = 9; break; case 76: *v = 0; break; case 16: *v = 132; break; case 97: *v = 232448; break; case 1: *v = 1024; break; case 10: *v = 32; break; case 8: *v = 49152; break; case 81: *v = 233472; break; case 39: *v = 2048; break; case 5: *v = 2147483647; break; case 6: case 7: *v = 65535; break; case 2: case 3: *v = 1024; break; case 4: *v = 64; break; default: *v = 0; } return cudaSuccess; }
X E cudaDeviceGetStreamPriorityRange(int* a, int* b) { *a = 0; *b = -5; return cudaSuccess; }
X E cudaDeviceGetPCIBusId(char* s, int n, int dev) { snprintf(s, n, "0000:%02x:00.0", dev); return cudaSuccess; }
X E cudaDeviceCanAccessPeer(int* c, int, int) { *c = 0; return cudaSuccess; }
X E cudaDeviceSynchronize() { std::lock_guard<std::mutex> g(mu); st.sync_device++; return cudaSuccess; }
X E cudaGetLastError() { return cudaSuccess; }
X E cudaPeekAtLastError() { return cudaSuccess; }
X const char* cudaGetErrorString(E) { return "nullgpu error"; }
X const char* cudaGetErrorName(E) { return "nullgpuError"; }
X E cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) { memset(a, 0, sizeof *a); a->maxThreadsPerBlock = 1024; a->numRegs = 32; a->binaryVersion = 90; a->ptxVersion = 90; return cudaSuccess; }
X E cudaFuncSetAttribute(const void*, int, int) { return cudaSuccess; }
X E cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int, size_t, unsigned) { *n = 2; return cudaSuccess; }
X E cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int, size_t) { *n = 2; return cudaSuccess; }
X E cudaMemGetInfo(size_t* f, size_t* t) { *f = *t = 80ull << 30; *f -= st.live; return cudaSuccess; }
// memory
static void* map_(size_t n) { void* p = mmap(0, n ? n : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); return p == MAP_FAILED ? 0 : p; }
X E cudaMalloc(void** p, size_t n) { std::lock_guard<std::mutex> g(mu); if (st.live + (long)n > (80l << 30)) return cudaErrorMemoryAllocation; *p = map_(n); if (!*p) return cudaErrorMemoryAllocation; dev[(uintptr_t)*p] = n; st.live += n; st.allocs++; if (st.live > st.peak) st.peak = st.live; return cudaSuccess; }
X E cudaFree(void* p) { std::lock_guard<std::mutex> g(mu); auto it = dev.find((uintptr_t)p); if (it != dev.end()) { munmap(p, it->second ? it->second : 1); st.live -= it->second; dev.erase(it); st.frees++; } return cudaSuccess; }
X E cudaHostAlloc(void** p, size_t n, unsigned) { std::lock_guard<std::mutex> g(mu); *p = map_(n); pinned[(uintptr_t)*p] = n; return cudaSuccess; }
X E cudaFreeHost(void* p) { std::lock_guard<std::mutex> g(mu); auto it = pinned.find((uintptr_t)p); if (it != pinned.end()) { munmap(p, it->second ? it->second : 1); pinned.erase(it); } return cudaSuccess; }
X E cudaHostRegister(void* p, size_t n, unsigned) { std::lock_guard<std::mutex> g(mu); pinned[(uintptr_t)p] = n; return cudaSuccess; }
X E cudaHostUnregister(void* p) { std::lock_guard<std::mutex> g(mu); pinned.erase((uintptr_t)p); return cudaSuccess; }
X E cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) { std::lock_guard<std::mutex> g(mu); memset(a, 0, sizeof *a); a->device = 0; if (in(dev, p)) { a->type = cudaMemoryTypeDevice; a->devicePointer = (void*)p; } else if (in(pinned, p)) { a->type = cudaMemoryTypeHost; a->hostPointer = a->devicePointer = (void*)p; } else a->type = cudaMemoryTypeUnregistered; return cudaSuccess; }
static E copy(void* d, const void* s, size_t n, bool async) {
  std::lock_guard<std::mutex> g(mu); bool sd = in(dev, s), dd = in(dev, d);
  if (sd && dd) { st.d2d++; count("memcpy D2D"); return cudaSuccess; }
  if (sd) { st.d2h++; st.bytes_d2h += n; count(in(pinned, d) ? "memcpy D2H pinned" : "memcpy D2H pageable"); if (n <= 64) memset(d, 0, n); else memcpy(d, s, n); return cudaSuccess; }
  st.bytes_h2d += n; if (in(pinned, s)) { st.h2d_pinned++; count("memcpy H2D pinned"); } else { st.h2d_pageable++; count("memcpy H2D pageable"); }
  memcpy(d, s, n); return cudaSuccess; }
X E cudaMemcpy(void* d, const void* s, size_t n, int) { return copy(d, s, n, false); }
X E cudaMemcpyAsync(void* d, const void* s, size_t n, int, void*) { return copy(d, s, n, true); }
X E cudaMemcpyPeerAsync(void* d, int, const void* s, int, size_t n, void*) { return copy(d, s, n, true); }
X E cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, int) { return cudaSuccess; }
X E cudaMemset(void*, int, size_t) { std::lock_guard<std::mutex> g(mu); st.memset++; count("memset"); return cudaSuccess; }
X E cudaMemsetAsync(void*, int, size_t, void*) { std::lock_guard<std::mutex> g(mu); st.memset++; count("memset"); return cudaSuccess; }
X E cudaGetSymbolAddress(void** p, const void*) { static char z[1 << 16]; *p = z; return cudaSuccess; }
// streams and events
static void* token() { return calloc(1, 64); }
X E cudaStreamCreate(void** s) { *s = token(); return cudaSuccess; }
X E cudaStreamCreateWithFlags(void** s, unsigned) { *s = token(); return cudaSuccess; }
X E cudaStreamCreateWithPriority(void** s, unsigned, int) { *s = token(); return cudaSuccess; }
X E cudaStreamDestroy(void*) { return cudaSuccess; }
X E cudaStreamSynchronize(void*) { std::lock_guard<std::mutex> g(mu); st.sync_stream++; return cudaSuccess; }
X E cudaStreamQuery(void*) { return cudaSuccess; }
X E cudaStreamWaitEvent(void*, void*, unsigned) { return cudaSuccess; }
X E cudaStreamGetPriority(void*, int* p) { *p = 0; return cudaSuccess; }
X E cudaStreamIsCapturing(void*, int* s) { *s = 0; return cudaSuccess; }
X E cudaStreamGetCaptureInfo(void*, int* s, unsigned long long* id, void*, void*, void*, size_t* n) { if (s) *s = 0; if (id) *id = 0; if (n) *n = 0; return cudaSuccess; }
X E cudaThreadExchangeStreamCaptureMode(int*) { return cudaSuccess; }
X E cudaStreamAddCallback(void*, void*, void*, unsigned) { return cudaSuccess; }
X E cudaLaunchHostFunc(void*, void*, void*) { return cudaSuccess; }
X E cudaEventCreate(void** e) { *e = token(); return cudaSuccess; }
X E cudaEventCreateWithFlags(void** e, unsigned) { *e = token(); return cudaSuccess; }
X E cudaEventDestroy(void*) { return cudaSuccess; }
X E cudaEventRecord(void*, void*) { return cudaSuccess; }
X E cudaEventRecordWithFlags(void*, void*, unsigned) { return cudaSuccess; }
X E cudaEventQuery(void*) { return cudaSuccess; }
X E cudaEventSynchronize(void*) { std::lock_guard<std::mutex> g(mu); st.sync_event++; return cudaSuccess; }
X E cudaEventElapsedTime(float* t, void*, void*) { *t = 1.0f; return cudaSuccess; }
X E cudaGetDriverEntryPointByVersion(const char* s, void** f, unsigned, unsigned long long, int* r) { (void)s; *f = 0; if (r) *r = 1; return cudaErrorNotSupported; }
// cuBLASLt: out-parameters that are read
X int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* res, int* n) { memset(res, 0, 64); *n = 1; return 0; }
X int cublasCreate_v2(void** h) { *h = token(); return 0; }
X size_t cublasLtGetVersion() { return 130000; }
X int cublasGetMathMode(void*, int* m) { *m = 0; return 0; }
X int cublasGetPointerMode_v2(void*, int* m) { *m = 0; return 0; }
X int cublasSetStream_v2(void*, void*) { return 0; }
X int cublasSetWorkspace_v2(void*, void*, size_t) { return 0; }
X int cublasSetMathMode(void*, int) { return 0; }
X int cublasSetPointerMode_v2(void*, int) { return 0; }
X int cublasLtMatmulDescCreate(void** d, int, int) { *d = token(); return 0; }
X int cublasLtMatrixLayoutCreate(void** d, int, unsigned long, unsigned long, long) { *d = token(); return 0; }
X int cublasLtMatmulPreferenceCreate(void** d) { *d = token(); return 0; }
X int cublasLtMatmulDescSetAttribute(void*, int, const void*, size_t) { return 0; }
X int cublasLtMatrixLayoutSetAttribute(void*, int, const void*, size_t) { return 0; }
X int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return 0; }
X int cublasLtMatmulDescDestroy(void*) { return 0; }
X int cublasLtMatrixLayoutDestroy(void*) { return 0; }
X int cublasLtMatmulPreferenceDestroy(void*) { return 0; }
#include "stubs.inc"
