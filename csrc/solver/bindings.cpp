// The module sylvinit._lapack: batches of Sylvester equations on the CPU.
//
// Addresses come as integers and are not checked here: sylvinit/sylvester/lapack.py does that. The
// memory is row-major, float64 or complex128; problem.h says what that means for the equation.
#include <pybind11/complex.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#include "batch.h"
#include "capsules.h"
#include "hermitian.h"
#include "principal.h"
#include "problem.h"
#include "regular.h"
#include "schur.h"
#include "small_batch.h"

namespace sylvinit {
namespace {

using Address = std::uintptr_t;
using Index = std::int64_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Runs f with a value of the scalar type.
template <class F>
auto with_scalar(bool is_complex, const F& f) {
  return is_complex ? f(Complex()) : f(double());
}

// (largest |entry|, largest |A - A^H|) of `count` matrices; NaN if an entry is.
template <class S>
std::pair<double, double> inspect_matrices(const S* a, Index count, Index rows, Index columns) {
  double size = 0, asymmetry = 0;
  auto larger = [](double x, double most) { return x > most || x != x ? x : most; };
  for (Index matrix = 0; matrix < count; ++matrix, a += rows * columns) {
    for (Index i = 0; i < rows * columns; ++i) {
      if (size != size) break;
      size = larger(std::abs(a[i]), size);
    }
    if (rows != columns) continue;
    constexpr Index kTile = 32;  // both a tile and its mirror image stay in the cache
    for (Index r = 0; r < rows; r += kTile)
      for (Index c = 0; c <= r; c += kTile)
        for (Index i = r; i < std::min(r + kTile, rows); ++i)
          for (Index j = c; j < std::min(c + kTile, i + 1); ++j) {
            S mirrored = a[j * columns + i];
            if constexpr (kParts<S> == 2) mirrored = std::conj(mirrored);
            asymmetry = larger(std::abs(a[i * columns + j] - mirrored), asymmetry);
          }
  }
  return {size, asymmetry};
}

py::tuple inspect(Address a, Index count, Index rows, Index columns, bool is_complex) {
  std::pair<double, double> found;
  {
    py::gil_scoped_release release;
    found = with_scalar(is_complex, [&](auto scalar) {
      return inspect_matrices(at<decltype(scalar)>(a), count, rows, columns);
    });
  }
  return py::make_tuple(found.first, found.second);
}

// Runs work(i), which returns LAPACK's info, for all problems; the first index that failed, or -1.
template <class Work>
Index first_failure(Index count, int threads, const Work& work) {
  std::atomic<Index> failed{count};
  for_each_problem(count, threads, [&](Index i) {
    bool good = false;
    try {
      good = work(i) == 0;
    } catch (const std::exception&) {
    }
    if (good) return;
    Index known = failed.load();
    while (i < known && !failed.compare_exchange_weak(known, i)) {
    }
  });
  return failed == count ? -1 : failed.load();
}

enum class Form { spectral, tridiagonal, schur };

template <class S>
Index decompose_matrices(Form form, const S* a, Index count, int n, S* basis, void* core,
                         int threads) {
  const Index square = static_cast<Index>(n) * n;
  if (n == 0) return -1;
  return first_failure(count, threads, [&](Index i) {
    S* z = basis + i * square;
    if (form == Form::schur) {
      S* t = static_cast<S*>(core) + i * square;
      std::memcpy(static_cast<void*>(t), a + i * square, square * sizeof(S));
      return schur_decompose(n, t, z);
    }
    std::memcpy(static_cast<void*>(z), a + i * square, square * sizeof(S));
    double* reals = static_cast<double*>(core);
    if (form == Form::spectral) return eigen_decompose(n, z, reals + i * n);
    return tridiagonal_form(n, z, reals + i * n * kCoreRows<S>);
  });
}

Index decompose(int form, Address a, Index count, int n, Address basis, Address core,
                bool is_complex, int threads) {
  py::gil_scoped_release release;
  return with_scalar(is_complex, [&](auto scalar) {
    using S = decltype(scalar);
    return decompose_matrices(static_cast<Form>(form), at<S>(a), count, n, at<S>(basis),
                              at<void>(core), threads);
  });
}

// One matrix of each problem: its address for problem i.
template <class S>
struct Operand {
  S* data;
  Index stride;
  const Index* index;  // null: problem i has matrix i

  S* operator()(Index i) const { return data + (index == nullptr ? i : index[i]) * stride; }
};

// The problem that matters most for what is said of a batch.
class Worst {
 public:
  void add(Index i, const Outcome& outcome) {
    std::lock_guard<std::mutex> lock(mutex_);
    dropped_ += outcome.dropped;
    residual_ = outcome.residual > residual_ || outcome.residual != outcome.residual
                    ? outcome.residual
                    : residual_;
    const bool worse = status_ == Status::ok
                           ? outcome.status != Status::ok || outcome.separation < separation_
                           : outcome.status != Status::ok && i < problem_;
    if (!worse) return;
    status_ = outcome.status;
    separation_ = outcome.separation;
    problem_ = i;
    a_ = outcome.a;
    b_ = outcome.b;
  }

  py::tuple tuple() const {
    return py::make_tuple(static_cast<int>(status_), problem_, residual_, separation_, a_, b_,
                          dropped_);
  }

 private:
  std::mutex mutex_;
  Status status_ = Status::ok;
  Index problem_ = 0;
  double residual_ = 0, separation_ = std::numeric_limits<double>::infinity();
  Complex a_ = 0, b_ = 0;
  long long dropped_ = 0;
};

template <class Work>
void solve_each(Index count, int threads, Worst* worst, const Work& work) {
  for_each_problem(count, threads, [&](Index i) {
    Outcome outcome;
    try {
      work(i, &outcome);
    } catch (const std::exception&) {
      outcome.status = Status::no_memory;
    }
    worst->add(i, outcome);
  });
}

struct Operands {
  Address left, left_basis, left_core, right, right_basis, right_core, c, y;
  Address left_index, right_index, c_index;
};

template <class S>
void solve_hermitian_batch(const Operands& o, Index count, int m, int n, double eps, bool positive,
                           bool examine, int threads, Worst* worst) {
  const Index mm = static_cast<Index>(m) * m, nn = static_cast<Index>(n) * n,
              mn = static_cast<Index>(m) * n;
  const Index* li = at<const Index>(o.left_index);
  const Index* ri = at<const Index>(o.right_index);
  const Operand<S> left{at<S>(o.left), mm, li}, reflectors{at<S>(o.left_basis), mm, li};
  const Operand<double> core{at<double>(o.left_core), static_cast<Index>(m) * kCoreRows<S>, li};
  const Operand<S> right{at<S>(o.right), nn, ri}, vectors{at<S>(o.right_basis), nn, ri};
  const Operand<double> values{at<double>(o.right_core), n, ri};
  const Operand<S> c{at<S>(o.c), mn, at<const Index>(o.c_index)};
  S* y = at<S>(o.y);
  solve_each(count, threads, worst, [&](Index i, Outcome* outcome) {
    HermitianEquation<S> equation(m, n, left(i), reflectors(i), core(i), right(i), vectors(i),
                                  values(i), eps, positive);
    if (examine) *outcome = equation.examine();
    if (outcome->status == Status::ok) equation.solve(c(i), y + i * mn, outcome);
  });
}

py::tuple solve_hermitian(const Operands& o, Index count, int m, int n, bool is_complex, double eps,
                          bool positive, bool examine, int threads) {
  Worst worst;
  {
    py::gil_scoped_release release;
    with_scalar(is_complex, [&](auto scalar) {
      solve_hermitian_batch<decltype(scalar)>(o, count, m, n, eps, positive, examine, threads,
                                              &worst);
    });
  }
  return worst.tuple();
}

template <class S>
void solve_general_batch(const Operands& o, Index count, int m, int n, double eps, bool adjoint,
                         bool examine, int threads, Worst* worst) {
  const Index mm = static_cast<Index>(m) * m, nn = static_cast<Index>(n) * n,
              mn = static_cast<Index>(m) * n;
  const Index* li = at<const Index>(o.left_index);
  const Index* ri = at<const Index>(o.right_index);
  const Operand<S> left{at<S>(o.left), mm, li}, z_left{at<S>(o.left_basis), mm, li},
      t_left{at<S>(o.left_core), mm, li};
  const Operand<S> right{at<S>(o.right), nn, ri}, z_right{at<S>(o.right_basis), nn, ri},
      t_right{at<S>(o.right_core), nn, ri};
  const Operand<S> c{at<S>(o.c), mn, at<const Index>(o.c_index)};
  S* y = at<S>(o.y);
  solve_each(count, threads, worst, [&](Index i, Outcome* outcome) {
    SchurEquation<S> equation(m, n, left(i), z_left(i), t_left(i), right(i), z_right(i), t_right(i),
                              eps);
    if (examine) *outcome = equation.examine();
    if (outcome->status == Status::ok) equation.solve(adjoint, c(i), y + i * mn, outcome);
  });
}

py::tuple solve_general(const Operands& o, Index count, int m, int n, bool is_complex, double eps,
                        bool adjoint, bool examine, int threads) {
  Worst worst;
  {
    py::gil_scoped_release release;
    with_scalar(is_complex, [&](auto scalar) {
      solve_general_batch<decltype(scalar)>(o, count, m, n, eps, adjoint, examine, threads, &worst);
    });
  }
  return worst.tuple();
}

// Decomposes and solves one Hermitian equation, A, B and Q row-major.
template <class S>
void solve_hermitian_one(int k, int d, const S* a, const S* b, const S* q, S* x, double eps,
                         bool positive, Outcome* outcome) {
  std::vector<S> reflectors(b, b + static_cast<Index>(d) * d);
  std::vector<S> vectors(a, a + static_cast<Index>(k) * k);
  std::vector<double> core(static_cast<Index>(d) * kCoreRows<S>), values(k);
  if (eigen_decompose(k, vectors.data(), values.data()) != 0 ||
      tridiagonal_form(d, reflectors.data(), core.data()) != 0) {
    outcome->status = Status::not_converged;
    return;
  }
  HermitianEquation<S> equation(d, k, b, reflectors.data(), core.data(), a, vectors.data(),
                                values.data(), eps, positive);
  *outcome = equation.examine();
  if (outcome->status == Status::ok) equation.solve(q, x, outcome);
}

// Both decompositions and the solution of Hermitian equations with one matrix each, in one call.
// False if an entry is not finite or a matrix not Hermitian to the bit.
template <class S>
bool solve_hermitian_once(const S* a, const S* b, const S* q, S* x, Index count, int k, int d,
                          double eps, bool positive, int threads, Worst* worst) {
  const Index kk = static_cast<Index>(k) * k, dd = static_cast<Index>(d) * d,
              kd = static_cast<Index>(k) * d;
  std::vector<long long> left;
  bool small = false;
#ifdef SYLVINIT_LANES
  if constexpr (kParts<S> == 1) {
    small = d <= kSmall;
    Outcome solved;
    const SmallProblem problem{k, d, count, a, b, q, x, eps, positive};
    if (small && !solve_small(problem, threads, &left, &solved.residual)) return false;
    worst->add(0, solved);
  }
#endif
  for (Index i = 0; i < count && !small; ++i) {
    if (!is_regular(k, d, a + i * kk, b + i * dd, q + i * kd)) return false;
  }
  const Index rest = small ? static_cast<Index>(left.size()) : count;
  for_each_problem(rest, threads, [&](Index at) {
    const Index i = small ? left[at] : at;
    Outcome outcome;
    try {
      solve_hermitian_one(k, d, a + i * kk, b + i * dd, q + i * kd, x + i * kd, eps, positive,
                          &outcome);
    } catch (const std::exception&) {
      outcome.status = Status::no_memory;
    }
    worst->add(i, outcome);
  });
  return true;
}

py::object solve_hermitian_direct(Address a, Address b, Address q, Address x, Index count, int k,
                                  int d, bool is_complex, double eps, bool positive, int threads) {
  Worst worst;
  bool done;
  {
    py::gil_scoped_release release;
    done = with_scalar(is_complex, [&](auto scalar) {
      using S = decltype(scalar);
      return solve_hermitian_once(at<const S>(a), at<const S>(b), at<const S>(q), at<S>(x), count,
                                  k, d, eps, positive, threads, &worst);
    });
  }
  if (!done) return py::none();
  return worst.tuple();
}

// For every matrix of a batch its largest eigenvalue, and how many are above relative * largest +
// absolute[i], from tridiagonal cores.
void count_significant_batch(Address core, Index count, int n, double relative, Address absolute,
                             Address largest, Address ranks, int threads) {
  py::gil_scoped_release release;
  for_each_problem(count, threads, [&](Index i) {
    const double* own = at<const double>(core) + i * n * kCoreRows<double>;
    at<Index>(ranks)[i] = count_significant(Tridiagonal(n, own, own + n), relative,
                                            at<const double>(absolute)[i], at<double>(largest) + i);
  });
}

struct PrincipalBatch {
  Address reflectors, core, vectors, squares, first, counts, values, z, rows, along, variances;
};

// Outputs have room for `most` rows of every matrix. The first matrix that failed, or -1.
Index principal_rows_batch(const PrincipalBatch& o, Index count, int n, int most, double lam,
                           double copies, bool dual, int threads) {
  py::gil_scoped_release release;
  const Index square = static_cast<Index>(n) * n, block = static_cast<Index>(n) * most;
  return first_failure(count, threads, [&](Index i) {
    const RankOneEquation equation{lam, copies, dual, at<const double>(o.squares)[i]};
    const PrincipalRows out{at<double>(o.values) + i * most, at<double>(o.z) + i * block,
                            at<double>(o.rows) + i * block, at<double>(o.along) + i * most,
                            at<double>(o.variances) + i * most};
    return principal_rows(n, at<const double>(o.reflectors) + i * square,
                          at<const double>(o.core) + i * n * kCoreRows<double>,
                          at<const double>(o.vectors) + i * n, equation,
                          static_cast<int>(at<const Index>(o.first)[i]),
                          static_cast<int>(at<const Index>(o.counts)[i]), out);
  });
}

}  // namespace
}  // namespace sylvinit

PYBIND11_MODULE(_lapack, module) {
  using namespace sylvinit;
  load_lapack();
  module.attr("SPECTRAL") = static_cast<int>(Form::spectral);
  module.attr("TRIDIAGONAL") = static_cast<int>(Form::tridiagonal);
  module.attr("SCHUR") = static_cast<int>(Form::schur);
  py::class_<Operands>(module, "Operands")
      .def(py::init([](Address left, Address left_basis, Address left_core, Address right,
                       Address right_basis, Address right_core, Address c, Address y,
                       Address left_index, Address right_index, Address c_index) {
        return Operands{left, left_basis, left_core,  right,       right_basis, right_core,
                        c,    y,          left_index, right_index, c_index};
      }));
  py::class_<PrincipalBatch>(module, "PrincipalBatch")
      .def(py::init([](Address reflectors, Address core, Address vectors, Address squares,
                       Address first, Address counts, Address values, Address z, Address rows,
                       Address along, Address variances) {
        return PrincipalBatch{reflectors, core, vectors, squares, first,    counts,
                              values,     z,    rows,    along,   variances};
      }));
  module.def("count_significant", &count_significant_batch);
  module.def("principal_rows", &principal_rows_batch);
  module.def("inspect", &inspect);
  module.def("decompose", &decompose);
  module.def("solve_hermitian", &solve_hermitian);
  module.def("solve_hermitian_direct", &solve_hermitian_direct);
  module.def("solve_general", &solve_general);
}
