// Settings of a connection of the mesh.
#pragma once

namespace hearth {

// Makes a socket non-blocking, and sends small frames at once. Throws std::system_error.
void settle_mesh_socket(int socket);

}  // namespace hearth
