#!/bin/sh
# sh .ci/install_nvcc.sh 13.0: CUDA's compiler in a manylinux_2_28 container, whose g++ 14 it supports.
set -eu
release=$(echo "$1" | tr . -)
case $(uname -m) in
    x86_64) machine=x86_64 ;;
    aarch64) machine=sbsa ;;
esac
curl --fail --silent --show-error --output /etc/yum.repos.d/cuda.repo \
    "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/$machine/cuda-rhel8.repo"
dnf install -y "cuda-nvcc-$release" "cuda-cudart-devel-$release"
