# cmake --install: program, libraries, header, pkg-config file, man page, demo models.
install(TARGETS sluice RUNTIME)
install(TARGETS sluice_static sluice_shared ARCHIVE LIBRARY)
install(FILES include/sluice.h TYPE INCLUDE)
configure_file(cmake/sluice.pc.in sluice.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/sluice.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES docs/sluice.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 OPTIONAL)
install(DIRECTORY models/demo DESTINATION ${CMAKE_INSTALL_DATADIR}/sluice FILES_MATCHING PATTERN "*.slu")
