# A model that edgeopt built, as a package of Buildroot: this file and a Config.in with BR2_PACKAGE_EDGEOPT_MODEL in
# package/edgeopt-model/, and EDGEOPT_MODEL_SITE the bundle. A package with edgeopt-model in its _DEPENDENCIES compiles
# the model in by find_package(edgeopt_model CONFIG). Buildroot was not run on it; its cmake commands are run in
# edgeopt's tests.
EDGEOPT_MODEL_VERSION = 1.0
EDGEOPT_MODEL_SITE ?= $(TOPDIR)/../build/mnist5k/arm64
EDGEOPT_MODEL_SITE_METHOD = local
EDGEOPT_MODEL_SUBDIR = cmake
EDGEOPT_MODEL_INSTALL_STAGING = YES

# The image gets the model; compilers find the rest in the staging folder.
define EDGEOPT_MODEL_INSTALL_TARGET_CMDS
	DESTDIR=$(TARGET_DIR) $(BR2_CMAKE) --install $(EDGEOPT_MODEL_BUILDDIR) --component runtime
endef

$(eval $(cmake-package))
