# A model that edgeopt built, for a Yocto image. In a layer: this file, and beside it, in edgeopt-model/, the archive of
#   edgeopt bundle pack build/mnist5k/arm64 -o edgeopt-model/model.edgeopt.tar.xz
# An image installs "edgeopt-model"; a recipe that compiles the model in has DEPENDS = "edgeopt-model" and
# find_package(edgeopt_model CONFIG). bitbake was not run on it; its cmake commands are run in edgeopt's tests.
SUMMARY = "A quantized network: the file, headers and golden vectors"
LICENSE = "CLOSED"
SRC_URI = "file://model.edgeopt.tar.xz;subdir=bundle"
S = "${WORKDIR}/bundle"
OECMAKE_SOURCEPATH = "${S}/cmake"

inherit cmake

FILES:${PN} = "${datadir}/edgeopt_model-*/model.tflite"
FILES:${PN}-dev = "${datadir}/edgeopt_model-*"
