// kLanes equations A X + X B = Q at once, A (k x k) and B (d x d) symmetric: an eigendecomposition
// of A, a tridiagonal form of B and shifted solves, as in hermitian.h. Included once for every
// instruction set, behind small_kernel.h (no include guard).

// Where the matrices of a pack of lanes are, in memory of SmallProblem::packs(k, d) Packs.
struct Workspace {
  Pack *a, *b, *c;  // A, B and C = Q^T
  Pack *v, *zt;     // reflectors of A, then its eigenvectors; eigenvectors of its tridiagonal form
  Pack* h;          // reflectors of B
  Pack *y, *x, *defect, *product;
  Pack *values, *off_a, *tau_a, *diagonal, *off, *tau, *t_values, *t_off;

  Workspace(int k, int d, Pack* at) {
    auto next = [&](int size) {
      Pack* here = at;
      at += size;
      return here;
    };
    a = next(k * k), v = next(k * k), zt = next(k * k);
    b = next(d * d), h = next(d * d);
    c = next(k * d), y = next(k * d), x = next(k * d), defect = next(k * d), product = next(k * d);
    values = next(k), off_a = next(k), tau_a = next(k);
    diagonal = next(d), off = next(d), tau = next(d), t_values = next(d), t_off = next(d);
  }
};

// x (d x k) <- the solution for c up to rounding.
SYLVINIT_TARGET inline void apply_inverse(int k, int d, const Workspace& s, const Pack* c,
                                          Pack* x) {
  multiply(d, k, k, 1, c, k, 1, s.v, k, 1, 0, s.product);
  apply_reflectors(true, d, k, s.h, s.tau, s.product);
  solve_shifted(d, k, s.diagonal, s.off, s.values, s.product);
  apply_reflectors(false, d, k, s.h, s.tau, s.product);
  multiply(d, k, k, 1, s.product, k, 1, s.v, 1, k, 0, x);
}

// The relative residual of x, lane by lane; see problem.h.
SYLVINIT_TARGET inline Pack residual_of(int k, int d, const Workspace& s, const Pack& norms,
                                        const Pack& size_c, const Pack* x) {
  for (int i = 0; i < k * d; ++i) s.defect[i] = s.c[i];
  multiply(d, k, d, -1, s.b, d, 1, x, k, 1, 1, s.defect);
  multiply(d, k, k, -1, x, k, 1, s.a, k, 1, 1, s.defect);
  const Pack error = root(squares(k * d, s.defect));
  const Pack scale = norms * root(squares(k * d, x)) + size_c;
  return error == 0 ? error : error / scale;
}

// Fills `found` and writes the solutions of the lanes that are solved there.
SYLVINIT_TARGET inline void solve_lanes(const SmallProblem& p, long long start, void* memory,
                                        SmallOutcome* found) {
  const int k = p.k, d = p.d;
  const Workspace s(k, d, static_cast<Pack*>(memory));
  const double* source[3][kLanes];
  for (int w = 0; w < kLanes; ++w) {
    const long long i = p.index(start + w);
    source[0][w] = p.a + i * k * k;
    source[1][w] = p.b + i * d * d;
    source[2][w] = p.q + i * k * d;
  }
  Pack size_a = {}, size_b = {}, size_q = {};
  for (int i = 0; i < k * k; ++i) {
    for (int w = 0; w < kLanes; ++w) lanes(s.a[i])[w] = source[0][w][i];
    size_a = larger(size_a, modulus(s.a[i]));
  }
  for (int i = 0; i < d * d; ++i) {
    for (int w = 0; w < kLanes; ++w) lanes(s.b[i])[w] = source[1][w][i];
    size_b = larger(size_b, modulus(s.b[i]));
  }
  for (int i = 0; i < k; ++i) {
    for (int j = 0; j < d; ++j) {
      Pack* to = s.c + j * k + i;
      for (int w = 0; w < kLanes; ++w) lanes(*to)[w] = source[2][w][i * d + j];
      size_q = larger(size_q, modulus(*to));
    }
  }
  Mask usable = size_a == size_a;
  for (const Pack& size : {size_a, size_b, size_q})
    usable &= (size == 0) | ((size >= kTiny) & (size <= 1 / kTiny));
  for (int i = 0; i < k * k; ++i) s.v[i] = usable ? s.a[i] : Pack{};
  for (int i = 0; i < d * d; ++i) s.h[i] = usable ? s.b[i] : Pack{};
  reduce(k, s.v, s.values, s.off_a, s.tau_a);
  for (int i = 0; i < k * k; ++i) s.zt[i] = Pack{} + (i % (k + 1) == 0 ? 1.0 : 0.0);
  Mask good = iterate(k, s.values, s.off_a, k, s.zt);
  // V = H Z in place of the reflectors; product holds Z meanwhile.
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < k; ++j) s.product[i * k + j] = s.zt[j * k + i];
  apply_reflectors(false, k, k, s.v, s.tau_a, s.product);
  for (int i = 0; i < k * k; ++i) s.v[i] = s.product[i];
  reduce(d, s.h, s.diagonal, s.off, s.tau);

  // Whether the lanes are clear of everything that has to be judged: the spectra of A and -B are
  // `gap` apart, twice the distance below which there are warnings. T need not be diagonalized
  // where they do not overlap.
  Pack low_a = s.values[0], high_a = low_a, reach = {}, left = {};
  for (int i = 1; i < k; ++i) {
    low_a = smaller(low_a, s.values[i]);
    high_a = larger(high_a, s.values[i]);
  }
  for (int i = 0; i < d; ++i) {
    const Pack right = i + 1 < d ? modulus(s.off[i]) : Pack{};
    reach = larger(reach, modulus(s.diagonal[i]) + left + right);
    left = right;
  }
  const Pack radius_a = larger(modulus(low_a), modulus(high_a));
  const double rounding = std::max(k, d) * p.eps;
  const Pack gap = std::max(2 * std::sqrt(p.eps), kClear * rounding) * (radius_a + reach);
  Mask apart = is_definite(d, s.diagonal, s.off, low_a - gap, 1);
  if (p.positive) {
    apart &= low_a >= -rounding * radius_a;
    apart &= is_definite(d, s.diagonal, s.off, 2 * rounding * reach, 1);
  } else if (any(apart == 0)) {
    apart |= is_definite(d, s.diagonal, s.off, -high_a - gap, -1);
    if (any(apart == 0)) {
      for (int i = 0; i < d; ++i) s.t_values[i] = s.diagonal[i], s.t_off[i] = s.off[i];
      const Mask converged = iterate(d, s.t_values, s.t_off, 0, nullptr);
      Pack nearest = Pack{} + __builtin_inf();
      for (int i = 0; i < k; ++i)
        for (int j = 0; j < d; ++j)
          nearest = smaller(nearest, modulus(s.values[i] + s.t_values[j]));
      apart |= converged & (nearest > gap);
    }
  }
  good &= apart & usable;
  for (int w = 0; w < kLanes; ++w) found[w].solved = false;
  if (!any(good)) return;

  const Pack norms = root(squares(k * k, s.a)) + root(squares(d * d, s.b));
  const Pack size_c = root(squares(k * d, s.c));
  apply_inverse(k, d, s, s.c, s.x);
  Pack residual = residual_of(k, d, s, norms, size_c, s.x);
  if (any(good & (residual > kRefineAbove))) {
    apply_inverse(k, d, s, s.defect, s.y);
    for (int i = 0; i < k * d; ++i) s.y[i] += s.x[i];
    const Pack refined = residual_of(k, d, s, norms, size_c, s.y);
    const Mask better = (residual > kRefineAbove) & (refined < residual);
    residual = better ? refined : residual;
    for (int i = 0; i < k * d; ++i) s.x[i] = better ? s.y[i] : s.x[i];
  }
  for (int w = 0; w < kLanes; ++w) {
    found[w].residual = lanes(residual)[w];
    found[w].solved = lanes(good)[w] != 0 && found[w].residual <= kSolved;
    if (!found[w].solved || start + w >= p.count) continue;
    double* to = p.x + p.index(start + w) * k * d;
    for (int i = 0; i < k; ++i)
      for (int j = 0; j < d; ++j) to[i * d + j] = lanes(s.x[j * k + i])[w];
  }
}
