// The kernel for kLanes small symmetric equations at once. Included once for every instruction
// set, in a namespace of its own, with SYLVINIT_TARGET naming the set: a function that is inlined
// from one without it would have been lowered to narrow registers before (no include guard).
//
// Matrices are row-major arrays of Packs. Lanes that are done, or that pivot where others do not,
// are masked; nothing branches on a single lane.

// The absolute value, lane by lane.
SYLVINIT_TARGET inline Pack modulus(const Pack& x) { return x < 0 ? -x : x; }

// Lane w of x is lanes(x)[w].
SYLVINIT_TARGET inline double* lanes(Pack& x) { return reinterpret_cast<double*>(&x); }
SYLVINIT_TARGET inline const double* lanes(const Pack& x) {
  return reinterpret_cast<const double*>(&x);
}
SYLVINIT_TARGET inline const long long* lanes(const Mask& x) {
  return reinterpret_cast<const long long*>(&x);
}

SYLVINIT_TARGET inline Pack root(const Pack& x) {
  Pack y;
  for (int w = 0; w < kLanes; ++w) lanes(y)[w] = __builtin_sqrt(lanes(x)[w]);
  return y;
}

SYLVINIT_TARGET inline Pack larger(const Pack& x, const Pack& y) { return x < y ? y : x; }
SYLVINIT_TARGET inline Pack smaller(const Pack& x, const Pack& y) { return y < x ? y : x; }

SYLVINIT_TARGET inline bool any(const Mask& mask) {
  long long found = 0;
  for (int w = 0; w < kLanes; ++w) found |= lanes(mask)[w];
  return found != 0;
}

// A = H T H^T: a (n x n, of which the lower triangle is read) becomes the reflectors of H, stored
// as LAPACK does, below the first subdiagonal.
SYLVINIT_TARGET inline void reduce(int n, Pack* a, Pack* diagonal, Pack* off, Pack* tau) {
  Pack v[kSmall], p[kSmall];
  for (int i = 0; i + 1 < n; ++i) {
    diagonal[i] = a[i * n + i];
    const Pack alpha = a[(i + 1) * n + i];
    Pack tail = {};
    for (int r = i + 2; r < n; ++r) tail += a[r * n + i] * a[r * n + i];
    const Mask trivial = tail == 0;
    const Pack length = root(alpha * alpha + tail);
    const Pack beta = trivial ? alpha : (alpha < 0 ? length : -length);
    const Pack factor = trivial ? Pack{} : (beta - alpha) / beta;
    const Pack scale = trivial ? Pack{} : 1 / (alpha - beta);
    off[i] = beta;
    tau[i] = factor;
    v[i + 1] = Pack{} + 1;
    for (int r = i + 2; r < n; ++r) a[r * n + i] = v[r] = a[r * n + i] * scale;
    for (int r = i + 1; r < n; ++r) {
      const Pack* row = a + r * n;
      const Pack here = v[r];
      Pack sum = row[r] * here;
      for (int c = i + 1; c < r; ++c) {
        sum += row[c] * v[c];
        p[c] += row[c] * here;
      }
      p[r] = sum;
    }
    Pack product = {};
    for (int r = i + 1; r < n; ++r) product += p[r] * v[r];
    const Pack half = -0.5 * factor * factor * product;
    for (int r = i + 1; r < n; ++r) p[r] = factor * p[r] + half * v[r];
    for (int r = i + 1; r < n; ++r) {
      Pack* row = a + r * n;
      const Pack left = v[r], right = p[r];
      for (int c = i + 1; c <= r; ++c) row[c] -= left * p[c] + right * v[c];
    }
  }
  diagonal[n - 1] = a[n * n - 1];
}

// c (m x n) <- H c, or H^T c with adjoint, H from reduce().
SYLVINIT_TARGET inline void apply_reflectors(bool adjoint, int m, int n, const Pack* a,
                                             const Pack* tau, Pack* c) {
  for (int step = 0; step + 1 < m; ++step) {
    const int i = adjoint ? step : m - 2 - step;
    const Pack* v = a + i;  // v[r * m], but 1 for r = i + 1
    int j = 0;
    for (; j + 4 <= n; j += 4) {
      Pack* first = c + (i + 1) * n + j;
      Pack s0 = first[0], s1 = first[1], s2 = first[2], s3 = first[3];
      for (int r = i + 2; r < m; ++r) {
        const Pack* row = c + r * n + j;
        const Pack here = v[r * m];
        s0 += here * row[0];
        s1 += here * row[1];
        s2 += here * row[2];
        s3 += here * row[3];
      }
      s0 *= tau[i], s1 *= tau[i], s2 *= tau[i], s3 *= tau[i];
      first[0] -= s0, first[1] -= s1, first[2] -= s2, first[3] -= s3;
      for (int r = i + 2; r < m; ++r) {
        Pack* row = c + r * n + j;
        const Pack here = v[r * m];
        row[0] -= here * s0;
        row[1] -= here * s1;
        row[2] -= here * s2;
        row[3] -= here * s3;
      }
    }
    for (; j < n; ++j) {
      Pack* first = c + (i + 1) * n + j;
      Pack sum = *first;
      for (int r = i + 2; r < m; ++r) sum += v[r * m] * c[r * n + j];
      sum *= tau[i];
      *first -= sum;
      for (int r = i + 2; r < m; ++r) c[r * n + j] -= v[r * m] * sum;
    }
  }
}

// Rows i and i + 1 of z (. x width) are turned by cosine[i], sine[i], from i = high - 1 to low.
SYLVINIT_TARGET inline void rotate(int low, int high, const Pack* cosine, const Pack* sine,
                                   int width, Pack* z) {
  int j = 0;
  for (; j + 4 <= width; j += 4) {
    Pack* row = z + high * width + j;
    Pack u0 = row[0], u1 = row[1], u2 = row[2], u3 = row[3];
    for (int i = high - 1; i >= low; --i) {
      Pack* next = row - width;
      const Pack c = cosine[i], s = sine[i];
      const Pack t0 = next[0], t1 = next[1], t2 = next[2], t3 = next[3];
      row[0] = s * t0 + c * u0;
      row[1] = s * t1 + c * u1;
      row[2] = s * t2 + c * u2;
      row[3] = s * t3 + c * u3;
      u0 = c * t0 - s * u0;
      u1 = c * t1 - s * u1;
      u2 = c * t2 - s * u2;
      u3 = c * t3 - s * u3;
      row = next;
    }
    row[0] = u0, row[1] = u1, row[2] = u2, row[3] = u3;
  }
  for (; j < width; ++j) {
    Pack* row = z + high * width + j;
    Pack u = *row;
    for (int i = high - 1; i >= low; --i) {
      Pack* next = row - width;
      const Pack t = *next;
      *row = sine[i] * t + cosine[i] * u;
      u = cosine[i] * t - sine[i] * u;
      row = next;
    }
    *row = u;
  }
}

// Eigenvalues of the tridiagonal T over its diagonal, in no order, by the implicit QL method (A.
// Dubrulle, R. S. Martin and J. H. Wilkinson, "The implicit QL algorithm", 1968). The rows of z
// (n x width) are turned along: from the identity they become the eigenvectors. off has n entries.
// Every lane works on the first block that has not fallen apart yet. Returns the lanes that got
// there.
SYLVINIT_TARGET inline Mask iterate(int n, Pack* diagonal, Pack* off, int width, Pack* z) {
  constexpr double kEps = 2.220446049250313e-16;
  Pack cosine[kSmall], sine[kSmall];
  off[n - 1] = Pack{};
  Pack size = {};
  for (int i = 0; i < n; ++i) size = larger(size, larger(modulus(diagonal[i]), modulus(off[i])));
  const Pack least = kEps * kEps * size;
  int first = 0;  // nothing is left to do before it
  const Mask none = Mask{} + (n - 1);
  Mask low = none;
  for (int sweep = 0; sweep < 30 * n; ++sweep) {
    Mask high = none, end = none;
    low = none;
    Pack d_end = diagonal[n - 1], d_high = {}, d0 = {}, d1 = {}, e0 = Pack{} + 1;
    for (int i = n - 2; i >= first; --i) {
      const Pack e = modulus(off[i]);
      const Mask split = e <= kEps * (modulus(diagonal[i]) + modulus(diagonal[i + 1])) + least;
      end = split ? Mask{} + i : end;
      d_end = split ? diagonal[i] : d_end;
      off[i] = split ? Pack{} : off[i];
      low = split ? low : Mask{} + i;
      high = split ? high : end;
      d_high = split ? d_high : d_end;
      d0 = split ? d0 : diagonal[i];
      d1 = split ? d1 : diagonal[i + 1];
      e0 = split ? e0 : off[i];
    }
    int from = 0, to = n - 1;
    for (int w = 0; w < kLanes; ++w) {
      const int begin = static_cast<int>(lanes(low)[w]);
      if (begin == n - 1) continue;
      to = std::min(to, begin);
      from = std::max(from, static_cast<int>(lanes(high)[w]));
    }
    if (to == n - 1) break;
    first = to;
    Pack g = (d1 - d0) / (2 * e0);
    const Pack r = root(g * g + 1);
    g = d_high - d0 + e0 / (g < 0 ? g - r : g + r);
    Pack s = Pack{} + 1, c = s, p = {};
    for (int i = from - 1; i >= to; --i) {
      const Mask active = (low <= i) & (high > i);
      const Pack f = s * off[i], b = c * off[i];
      const Pack length = root(f * f + g * g);
      const Pack inverse = 1 / length;
      const Mask still = length == 0;
      const Pack s_next = still ? Pack{} : f * inverse;
      const Pack c_next = still ? Pack{} + 1 : g * inverse;
      off[i + 1] = (active & (high > i + 1)) ? length : off[i + 1];
      const Pack before = diagonal[i + 1] - p;
      const Pack turn = (diagonal[i] - before) * s_next + 2 * c_next * b;
      const Pack p_next = s_next * turn;
      diagonal[i + 1] = active ? before + p_next : diagonal[i + 1];
      cosine[i] = active ? c_next : Pack{} + 1;
      sine[i] = active ? s_next : Pack{};
      s = active ? s_next : s;
      c = active ? c_next : c;
      p = active ? p_next : p;
      g = active ? c_next * turn - b : g;
    }
    for (int i = to; i < n - 1; ++i) {
      const Mask here = low == i;
      diagonal[i] = here ? diagonal[i] - p : diagonal[i];
      off[i] = here ? g : off[i];
    }
    if (width > 0) rotate(to, from, cosine, sine, width, z);
  }
  return low == none;
}

// c (m x n) <- beta c + alpha a b, entries of a (m x l) and b (l x n) at the strides given.
SYLVINIT_TARGET inline void multiply(int m, int n, int l, double alpha, const Pack* a, int a_row,
                                     int a_column, const Pack* b, int b_row, int b_column,
                                     double beta, Pack* c) {
  auto store = [](double alpha, double beta, const Pack& sum, Pack* to)
                   SYLVINIT_TARGET { *to = beta == 0 ? alpha * sum : beta * *to + alpha * sum; };
  for (int i = 0; i < m; i += 2) {
    const bool lower = i + 1 < m;
    const Pack *a0 = a + i * a_row, *a1 = lower ? a0 + a_row : a0;
    for (int j = 0; j < n; j += 2) {
      const bool right = j + 1 < n;
      const Pack *b0 = b + j * b_column, *b1 = right ? b0 + b_column : b0;
      Pack s00 = {}, s01 = {}, s10 = {}, s11 = {};
      for (int k = 0; k < l; ++k) {
        const Pack x0 = a0[k * a_column], x1 = a1[k * a_column];
        const Pack y0 = b0[k * b_row], y1 = b1[k * b_row];
        s00 += x0 * y0;
        s01 += x0 * y1;
        s10 += x1 * y0;
        s11 += x1 * y1;
      }
      Pack* to = c + i * n + j;
      store(alpha, beta, s00, to);
      if (right) store(alpha, beta, s01, to + 1);
      if (lower) store(alpha, beta, s10, to + n);
      if (lower && right) store(alpha, beta, s11, to + n + 1);
    }
  }
}

// Whether the first pivots of T + shift I are all positive: the matrix is positive definite.
SYLVINIT_TARGET inline Mask is_definite(int n, const Pack* diagonal, const Pack* off,
                                        const Pack& shift, double sign) {
  Pack pivot = sign * diagonal[0] + shift;
  Mask definite = pivot > 0;
  for (int i = 1; i < n; ++i) {
    pivot = sign * diagonal[i] + shift - off[i - 1] * off[i - 1] / pivot;
    definite &= pivot > 0;
  }
  return definite;
}

// (T + shifts[j] I) y_j = f_j for the columns of f (m x n), with partial pivoting; kColumns at
// once, since one alone waits for a division in every row.
SYLVINIT_TARGET inline void solve_shifted(int m, int n, const Pack* diagonal, const Pack* off,
                                          const Pack* shifts, Pack* f) {
  constexpr int kColumns = 4;
  Pack inverse[kSmall][kColumns], above[kSmall][kColumns], second[kSmall][kColumns];
  Pack y[kSmall][kColumns], shift[kColumns], d[kColumns], up[kColumns], here[kColumns];
  for (int first = 0; first < n; first += kColumns) {
    const int width = std::min(kColumns, n - first);
    for (int j = 0; j < kColumns; ++j) {
      const int column = first + std::min(j, width - 1);
      shift[j] = shifts[column];
      for (int i = 0; i < m; ++i) y[i][j] = f[i * n + column];
      d[j] = diagonal[0] + shift[j];
      up[j] = off[0];
    }
    for (int i = 0; i + 1 < m; ++i) {
      const Pack e = off[i], up_next = i + 2 < m ? off[i + 1] : Pack{};
      for (int j = 0; j < kColumns; ++j) {
        const Pack d_next = diagonal[i + 1] + shift[j], top = y[i][j], next = y[i + 1][j];
        const Mask swap = modulus(d[j]) < modulus(e);
        inverse[i][j] = 1 / (swap ? e : d[j]);
        const Pack factor = (swap ? d[j] : e) * inverse[i][j];
        above[i][j] = swap ? d_next : up[j];
        second[i][j] = swap ? up_next : Pack{};
        d[j] = (swap ? up[j] : d_next) - factor * above[i][j];
        up[j] = swap ? -factor * up_next : up_next;
        y[i][j] = swap ? next : top;
        y[i + 1][j] = (swap ? top : next) - factor * y[i][j];
      }
    }
    for (int j = 0; j < kColumns; ++j) y[m - 1][j] = y[m - 1][j] / d[j];
    for (int i = m - 2; i >= 0; --i) {
      for (int j = 0; j < kColumns; ++j) {
        const Pack before = i + 2 < m ? y[i + 2][j] : Pack{};
        here[j] = y[i][j] - above[i][j] * y[i + 1][j] - second[i][j] * before;
        y[i][j] = here[j] * inverse[i][j];
      }
    }
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < width; ++j) f[i * n + first + j] = y[i][j];
  }
}

// The squared Frobenius norm.
SYLVINIT_TARGET inline Pack squares(int size, const Pack* x) {
  Pack s0 = {}, s1 = {};
  for (int i = 0; i + 1 < size; i += 2) {
    s0 += x[i] * x[i];
    s1 += x[i + 1] * x[i + 1];
  }
  return size % 2 ? s0 + s1 + x[size - 1] * x[size - 1] : s0 + s1;
}
